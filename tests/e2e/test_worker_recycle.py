"""Worker processes that have done enough are replaced, and nobody notices but the process list."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.worker.harness import eventually, lines, scene

from pipeserve.jobs import JobStatus

pytestmark = pytest.mark.e2e


async def test_no_process_takes_more_jobs_than_it_may_and_no_attempt_is_lost():
    async with scene("quick") as at:
        done = at.folder / "done"
        with at.workers(processes=2, concurrency=2, PIPESERVE_MAX_JOBS_PER_CHILD="10") as workers:
            jobs = [await at.submit(path=str(done), seconds=0.02) for _ in range(50)]
            finished = await at.finished(*jobs, seconds=50)
            log = workers.log
        assert {(job.status, job.attempt) for job in finished} == {(JobStatus.COMPLETED, 1)}
        taken = Counter(pid for _, _, pid in lines(done))
        assert max(taken.values()) <= 10
        assert len(taken) >= 5
        assert "died" not in log
        assert "gave back" not in log


async def test_a_process_that_has_had_its_last_job_finishes_it_while_another_takes_over():
    async with scene("hold") as at:
        started, until = at.folder / "started", at.folder / "until"
        with at.workers(concurrency=2, PIPESERVE_MAX_JOBS_PER_CHILD="1", PIPESERVE_DRAIN_SECONDS="0.1") as workers:
            jobs = [await at.submit(started=str(started), until=str(until)) for _ in range(2)]
            await eventually(lambda: len(lines(started)) == 2, "both run")
            first, second = (pid for _, _, pid in lines(started))
            assert first != second
            assert {first, second} <= {str(child.pid) for child in workers.children()}, "the first still has its job"
            until.touch()
            finished = await at.finished(*jobs)
        assert {(job.status, job.attempt) for job in finished} == {(JobStatus.COMPLETED, 1)}


async def test_a_process_that_grows_too_large_is_replaced():
    async with scene("leaky") as at:
        kept = at.folder / "kept"
        with at.workers(concurrency=1, PIPESERVE_MAX_RSS="300MiB") as workers:
            jobs: list[str] = []

            async def two_processes() -> bool:
                jobs.append(await at.submit(path=str(kept), mib=60))
                await at.finished(jobs[-1])
                return len({pid for _, _, pid in lines(kept)}) >= 2

            await eventually(two_processes, "another process works on")
            assert "MiB resident" in workers.log
        finished = await at.finished(*jobs)
        assert {(job.status, job.attempt) for job in finished} == {(JobStatus.COMPLETED, 1)}


async def test_a_stop_does_not_wait_for_a_process_that_lingers_longer_than_for_others():
    async with scene("hold") as at:
        started = at.folder / "started"
        with at.workers(PIPESERVE_MAX_JOBS_PER_CHILD="1", PIPESERVE_DRAIN_SECONDS="0.1") as workers:
            job_id = await at.submit(started=str(started), until=str(at.folder / "never"))
            await eventually(lambda: workers.ready() == 2, "a successor is ready")
            workers.process.terminate()
            assert await workers.ended() == 0
        assert (await at.job(job_id)).status is JobStatus.PENDING
