"""A caller's cancel reaches the run, wherever the job is."""

from __future__ import annotations

import asyncio

import psutil
import pytest
from tests.worker.harness import Scene, eventually, lines, scene

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


async def test_a_step_in_a_process_of_its_own_is_killed():
    async with scene("hold_process") as at:
        started = at.folder / "started"
        with at.workers():
            job_id = await at.submit(started=str(started), until=str(at.folder / "never"))
            await eventually(lambda: lines(started), "it runs")
            pid = int(lines(started)[0][2])
            await at.jobs.ledger.cancel(job_id)
            [job] = await at.finished(job_id)
            assert job.status is JobStatus.CANCELED
            assert not psutil.pid_exists(pid)


async def test_a_job_is_canceled_only_when_its_work_has_stopped():
    async with scene("stubborn") as at:
        started, until = at.folder / "started", at.folder / "until"
        with at.workers(PIPESERVE_LEASE_SECONDS="1"):
            job_id = await at.submit(started=str(started), until=str(until))
            await eventually(lambda: lines(started), "it runs")
            await at.jobs.ledger.cancel(job_id)
            [_, second] = [await beat_of(at, job_id) for _ in range(2)]
            assert second, "its lease is still renewed"
            assert (await at.job(job_id)).status is JobStatus.CANCELING
            until.touch()
            [job] = await at.finished(job_id)
            assert job.status is JobStatus.CANCELED
            assert len(lines(started)) == 1


async def beat_of(at: Scene, job_id: str) -> float:
    """The end of the job's lease, once it was renewed."""
    with at.valkey.client() as client:
        before = client.zscore(at.jobs.keys.running, job_id)
        return await eventually(
            lambda: (now := client.zscore(at.jobs.keys.running, job_id)) != before and now, "a beat renews the lease"
        )


async def test_a_cancel_that_is_repeated_or_comes_too_late_changes_nothing():
    async with scene("hold_async") as at:
        started, until = at.folder / "started", at.folder / "until"
        with at.workers():
            canceled, completed = [await at.submit(started=str(started), until=str(until)) for _ in range(2)]
            await eventually(lambda: len(lines(started)) == 2, "they run")
            await asyncio.gather(*[at.jobs.ledger.cancel(canceled, reason=f"try {n}") for n in range(5)])
            await at.finished(canceled)
            until.touch()
            await at.finished(completed)
        for job_id, status in ((canceled, JobStatus.CANCELED), (completed, JobStatus.COMPLETED)):
            job, log = await at.job(job_id), await at.log(job_id)
            answer = await at.jobs.ledger.cancel(job_id, reason="too late")
            assert (answer.status, answer.already_finished) == (status, True)
            assert await at.job(job_id) == job
            assert await at.log(job_id) == log
        assert (await at.log(canceled)).count("cancellation_requested") == 1
        assert (await at.job(canceled)).cancel_reason == "try 0"


async def test_a_canceled_job_whose_worker_dies_does_not_start_again():
    async with scene("stubborn") as at:
        started = at.folder / "started"
        with at.workers(PIPESERVE_LEASE_SECONDS="300"):
            job_id = await at.submit(started=str(started), until=str(at.folder / "never"))
            await eventually(lambda: lines(started), "it runs")
            await at.jobs.ledger.cancel(job_id)
            psutil.Process(int(lines(started)[0][2])).kill()
            [job] = await at.finished(job_id)
            assert job.status is JobStatus.CANCELED
            assert await at.terminal_events(job_id) == ["pipeline_canceled"]
            assert len(lines(started)) == 1


async def test_a_job_that_waits_is_canceled_without_ever_starting():
    async with scene("hold") as at:
        started, until = at.folder / "started", at.folder / "until"
        with at.workers(concurrency=1):
            first = await at.submit(started=str(started), until=str(until))
            await eventually(lambda: lines(started), "the first runs")
            second = await at.submit(started=str(started), until=str(until))
            await at.jobs.ledger.cancel(second)
            assert (await at.job(second)).status is JobStatus.CANCELED, "at once"
            until.touch()
            jobs = await at.finished(first, second)
        assert [job.status for job in jobs] == [JobStatus.COMPLETED, JobStatus.CANCELED]
        assert len(lines(started)) == 1
