"""Every process is replaced while callers go on: the way in which a new version is brought out."""

from __future__ import annotations

import signal

import pytest
from tests.faults.installation import installation
from tests.faults.scenario import chance, loaded, losses

pytestmark = pytest.mark.e2e


async def test_a_rolling_restart_of_all_processes_loses_and_doubles_nothing_and_costs_no_attempt():
    moments = chance()
    # With one attempt for each job, a restart that cost one would end a job as worker_lost.
    async with (
        installation(PIPESERVE_DRAIN_SECONDS="0.1", PIPESERVE_MAX_ATTEMPTS="1") as at,
        loaded(at, moments, seconds=0.5) as load,
    ):
        for part in moments.sample(at.parts, len(at.parts)):
            part.signal(signal.SIGTERM)
            assert await part.ended() == 0
            part.start()
            await at.ready()
    ends = {job["status"] for job in load.history.jobs.values()}
    assert ends <= {"completed", "canceled"}
    assert losses(load.history).keys() == {"drained"}, "jobs were handed from one to the other"
