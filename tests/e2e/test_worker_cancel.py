"""A caller's cancel reaches the run, wherever the job is."""

from __future__ import annotations

import pytest
from tests.worker.harness import eventually, lines, scene

from pipeserve.jobs import JobStatus

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("pipeline", ["hold_async", "hold"])
async def test_a_running_job_is_canceled(pipeline: str):
    async with scene(pipeline) as at:
        started = at.folder / "started"
        with at.workers():
            job_id = await at.submit(started=str(started), until=str(at.folder / "never"))
            await eventually(lambda: lines(started), "it runs")
            await at.jobs.ledger.cancel(job_id, reason="enough", by="me")
            [job] = await at.finished(job_id)
            assert job.status is JobStatus.CANCELED
            assert job.cancel_reason == "enough"
            log = await at.log(job_id)
            assert log.index("cancellation_requested") < log.index("pipeline_canceled")
            assert log[-1] == "pipeline_canceled"


async def test_a_cancel_whose_signal_was_lost_comes_with_the_heartbeat():
    async with scene("hold_async", lease_seconds=1.0) as at:
        started = at.folder / "started"
        with at.workers(PIPESERVE_LEASE_SECONDS="1"):
            job_id = await at.submit(started=str(started), until=str(at.folder / "never"))
            await eventually(lambda: lines(started), "it runs")
            # What a cancel writes, without its PUBLISH.
            with at.valkey.client() as client:
                keys = at.jobs.keys
                client.zrem(keys.status("running"), job_id)
                client.zadd(keys.status("canceling"), {job_id: 1})
                client.hset(keys.job(job_id), "status", "canceling")
            [job] = await at.finished(job_id)
            assert job.status is JobStatus.CANCELED


async def test_a_job_that_waits_is_canceled_without_ever_starting():
    async with scene("hold") as at:
        started, until = at.folder / "started", at.folder / "until"
        with at.workers(concurrency=1):
            first = await at.submit(started=str(started), until=str(until))
            await eventually(lambda: lines(started), "the first runs")
            second = await at.submit(started=str(started), until=str(until))
            await at.jobs.ledger.cancel(second)
            until.touch()
            jobs = await at.finished(first, second)
        assert [job.status for job in jobs] == [JobStatus.COMPLETED, JobStatus.CANCELED]
        assert len(lines(started)) == 1
