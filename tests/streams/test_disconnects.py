"""Readers who are torn from their streams while the store restarts and a replica is killed."""

from __future__ import annotations

import pytest
from tests.faults.installation import Installation, installation
from tests.streams.disconnects import torn
from tests.streams.transports import TRANSPORTS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


async def kill_and_start(at: Installation) -> None:
    """Kill one API process, and start it again."""
    at.apis[0].kill()
    await at.apis[0].ended()
    at.apis[0].start()
    await at.ready()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_store_that_restarts_and_a_replica_that_is_killed_cost_no_event(transport: str) -> None:
    async with installation("drill", apis=2, supervisors=1) as at:
        tally = await torn(
            at,
            jobs=8,
            disconnects=32,
            seed=2,
            seconds=2.0,
            faults=[("the store restarted", at.restart_store), ("a replica killed", lambda: kill_and_start(at))],
            transports=[TRANSPORTS[transport]],
        )
    assert (tally.lost, tally.repeated, tally.unended) == (0, 0, 0)
    assert len(tally.faults) == 2


async def test_readers_torn_from_their_streams_lose_and_repeat_nothing() -> None:
    async with installation("drill", apis=2, supervisors=1) as at:
        tally = await torn(
            at,
            jobs=12,
            disconnects=60,
            seed=1,
            seconds=2.0,
            faults=[("the store restarted", at.restart_store), ("a replica killed", lambda: kill_and_start(at))],
        )
    assert (tally.lost, tally.repeated, tally.unended) == (0, 0, 0)
    assert tally.disconnects >= 60
    assert len(tally.faults) == 2
