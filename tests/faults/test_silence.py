"""Processes that are stopped and go on later: a worker past its lease, and the store under everybody's feet."""

from __future__ import annotations

import os
import signal

import pytest
from tests.faults.installation import LEASE, installation, paused
from tests.faults.scenario import chance, loaded, losses
from tests.worker.harness import eventually

pytestmark = pytest.mark.e2e


async def test_a_worker_that_was_stopped_past_its_lease_writes_nothing_and_that_is_told():
    async with installation("held", apis=1) as at:
        job_id = await at.submit(effects=str(at.effects), until=str(at.folder / "until"))
        await eventually(at.begun, "it runs")
        pid = at.begun()[0][2]
        before = len(await at.log_of(job_id))
        os.kill(pid, signal.SIGSTOP)
        await eventually(lambda: len(at.begun()) == 2, "another worker takes it over")
        assert at.begun()[1][:2] == (job_id, 2)
        (at.folder / "until").touch()  # both attempts come to their end, if they may
        job = await at.finished(job_id)
        assert (job["status"], job["attempt"]) == ("completed", 2)
        ended = await at.log_of(job_id)
        os.kill(pid, signal.SIGCONT)

        async def is_counted() -> bool:
            return (await at.get("/metrics"))["fenced_writes"] > 0

        await eventually(is_counted, "the sleeper's write is refused and counted")
        assert await at.log_of(job_id) == ended, "and changed nothing"
        assert [event["attempt"] for event in ended[before:]].count(1) == 1, "the first attempt's loss, and no more"
        job = await at.job(job_id)
        assert (job["status"], job["attempt"]) == ("completed", 2)
        assert job["fenced_writes"] > 0
        told = " ".join((await at.get(f"/jobs/{job_id}/explain"))["summary"])
        assert "refused" in told, told


async def test_workers_that_are_stopped_past_their_leases_under_load_lose_and_double_nothing():
    moments = chance()
    async with installation() as at, loaded(at, moments, frozen=True) as load:
        for _ in range(2):
            victim = moments.choice(await eventually(at.busy, "a worker is at work"))
            await paused(victim.pid, LEASE + moments.uniform(0.5, 1.5))
        await at.ready()
    assert losses(load.history).keys() == {"lease_expired"}, "jobs were taken from those who were silent, and no others"


async def test_a_store_that_is_stopped_for_longer_than_a_lease_loses_and_doubles_nothing():
    moments = chance()
    async with installation() as at:
        pid = at.store_pid()
        async with loaded(at, moments) as load:
            for _ in range(2):
                await paused(pid, 2 * LEASE)
                await at.ready()
    assert not losses(load.history), "the workers were there all the time, so no attempt was taken from them"
