"""A worker process dies in the middle of its jobs: they go on elsewhere, and each has one end."""

from __future__ import annotations

import signal
from collections import Counter

import psutil
import pytest
from tests.worker.harness import eventually, lines, scene

from pipeserve.jobs import JobStatus

pytestmark = pytest.mark.e2e


async def test_jobs_of_a_killed_worker_complete_elsewhere_exactly_once():
    async with scene("hold") as at:
        started, until = at.folder / "started", at.folder / "until"
        # The lease is far longer than this test: only the supervisor can have given the jobs back.
        with at.workers(processes=2, concurrency=2, PIPESERVE_LEASE_SECONDS="300") as workers:
            jobs = [await at.submit(started=str(started), until=str(until)) for _ in range(4)]
            await eventually(lambda: len(lines(started)) == 4, "all four run")
            victim = int(lines(started)[0][2])
            his = [job_id for job_id, _, pid in lines(started) if int(pid) == victim]
            psutil.Process(victim).kill()
            await eventually(lambda: len(lines(started)) == 4 + len(his), "the victim's jobs start again")
            until.touch()
            finished = await at.finished(*jobs)

            assert {job.status for job in finished} == {JobStatus.COMPLETED}
            for job in finished:
                log = await at.log(job.job_id)
                assert await at.terminal_events(job.job_id) == ["pipeline_completed"]
                assert log[-1] == "pipeline_completed"
                assert job.attempt == (2 if job.job_id in his else 1)
                assert log.count("attempt_lost") == (1 if job.job_id in his else 0)
            await eventually(lambda: len(workers.children()) == 2, "the victim is replaced")


async def test_all_of_many_short_jobs_complete_once_though_every_worker_is_killed():
    async with scene("quick") as at:
        done = at.folder / "done"
        with at.workers(processes=2, concurrency=4, PIPESERVE_LEASE_SECONDS="300") as workers:
            await eventually(lambda: workers.ready() == 2, "both are ready")
            first = workers.children()
            jobs = [await at.submit(path=str(done), seconds=0.05) for _ in range(60)]
            await eventually(lambda: len(lines(done)) >= 10, "some have run")
            for child in first:
                child.kill()
            finished = await at.finished(*jobs)

        assert Counter(job.status for job in finished) == {JobStatus.COMPLETED: 60}
        for job_id in jobs:
            assert await at.terminal_events(job_id) == ["pipeline_completed"]
        assert any(job.attempt == 2 for job in finished), "the kill hit running jobs"


async def test_a_job_that_kills_its_workers_ends_as_worker_lost():
    async with scene("poison") as at:
        left = at.folder / "left"
        with at.workers() as workers:
            job_id = await at.submit(path=str(left), max_attempts=2)
            [job] = await at.finished(job_id)
            assert job.status is JobStatus.FAILED
            assert job.error is not None
            assert job.error.code == "worker_lost"
            assert [attempt for _, attempt, _ in lines(left)] == ["1", "2"]
            assert (await at.log(job_id))[-1] == "pipeline_failed"
            assert await at.terminal_events(job_id) == ["pipeline_failed"]
            assert workers.process.poll() is None, "the supervisor goes on"


async def test_a_step_that_leaves_with_the_code_of_a_refusal_does_not_end_the_supervisor():
    async with scene("poison") as at:
        with at.workers() as workers:
            job_id = await at.submit(path=str(at.folder / "left"), code=2, max_attempts=1)
            [job] = await at.finished(job_id)
            assert job.status is JobStatus.FAILED
            await eventually(lambda: workers.ready() == 2, "another child is there")


async def test_a_killed_supervisor_leaves_no_workers():
    async with scene("quick") as at:
        with at.workers(processes=2) as workers:
            await eventually(lambda: workers.ready() == 2, "both are ready")
            children = workers.children()
            workers.signal(signal.SIGKILL)
            await eventually(lambda: not any(child.is_running() for child in children), "the children are gone")
