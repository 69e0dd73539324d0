"""SIGTERM: jobs in hand may end, what is left goes to other workers and costs no attempt."""

from __future__ import annotations

import signal

import pytest
from tests.worker.harness import eventually, lines, scene

from pipeserve.jobs import JobStatus

pytestmark = pytest.mark.e2e


async def test_a_drain_lets_running_jobs_end_and_claims_no_more():
    async with scene("hold") as at:
        started, until = at.folder / "started", at.folder / "until"
        with at.workers() as workers:
            job_id = await at.submit(started=str(started), until=str(until))
            await eventually(lambda: lines(started), "it runs")
            workers.signal(signal.SIGTERM)
            await eventually(lambda: "event=draining" in workers.log, "the drain begins")
            late = await at.submit(started=str(started), until=str(until))
            until.touch()
            assert await workers.ended() == 0
        assert (await at.job(job_id)).status is JobStatus.COMPLETED
        assert (await at.job(late)).status is JobStatus.PENDING


async def test_what_does_not_end_in_time_is_handed_back_without_counting_as_lost():
    async with scene("hold") as at:
        started, until = at.folder / "started", at.folder / "until"
        with at.workers(PIPESERVE_DRAIN_SECONDS="0.1") as workers:
            job_id = await at.submit(started=str(started), until=str(until), max_attempts=1)
            await eventually(lambda: lines(started), "it runs")
            workers.signal(signal.SIGTERM)
            assert await workers.ended() == 0
        assert (await at.job(job_id)).status is JobStatus.PENDING
        until.touch()
        with at.workers():  # one attempt allowed, and it is not used up
            [job] = await at.finished(job_id)
        assert job.status is JobStatus.COMPLETED
        assert await at.terminal_events(job_id) == ["pipeline_completed"]


async def test_a_job_that_is_handed_back_goes_first_again_and_its_log_says_why():
    async with scene("hold") as at:
        started, until = at.folder / "started", at.folder / "until"
        with at.workers(concurrency=1, PIPESERVE_DRAIN_SECONDS="0.1") as workers:
            jobs = [await at.submit(started=str(started), until=str(until)) for _ in range(3)]
            await eventually(lambda: lines(started), "the first runs")
            workers.signal(signal.SIGTERM)
            assert await workers.ended() == 0
        assert (await at.job(jobs[0])).queue_position == 0
        assert await at.lost_reasons(jobs[0]) == ["drained"]
        with at.valkey.client() as client:
            assert client.hget(at.jobs.keys.job(jobs[0]), "lost") == b"0"
        until.touch()
        with at.workers(concurrency=1):
            await at.finished(*jobs)
        assert [job_id for job_id, _, _ in lines(started)] == [jobs[0], *jobs]


async def test_a_second_signal_does_not_wait():
    async with scene("hold") as at:
        started = at.folder / "started"
        with at.workers(PIPESERVE_DRAIN_SECONDS="600") as workers:
            job_id = await at.submit(started=str(started), until=str(at.folder / "never"))
            await eventually(lambda: lines(started), "it runs")
            workers.signal(signal.SIGINT)
            await eventually(lambda: "event=draining" in workers.log, "the drain begins")
            workers.signal(signal.SIGINT)
            assert await workers.ended() == 0
        assert (await at.job(job_id)).status is JobStatus.PENDING


async def test_a_step_that_nothing_can_stop_does_not_keep_its_process():
    async with scene("stubborn") as at:
        started = at.folder / "started"
        with at.workers(PIPESERVE_DRAIN_SECONDS="0.1") as workers:
            job_id = await at.submit(started=str(started), until=str(at.folder / "never"))
            await eventually(lambda: lines(started), "it runs")
            children = workers.children()
            workers.signal(signal.SIGTERM)
            assert await workers.ended() == 0
            assert not any(child.is_running() for child in children)
        assert (await at.job(job_id)).status is JobStatus.PENDING


async def test_a_stop_before_the_worker_is_ready_does_not_wait_for_its_start():
    async with scene("never_ready") as at:
        started = at.folder / "init"
        with at.workers(INIT_STARTED=str(started)) as workers:
            await eventually(started.exists, "on_init runs")
            workers.signal(signal.SIGTERM)
            assert await workers.ended() == 0


async def test_a_worker_is_listed_while_it_lives_and_gone_after_its_drain():
    async with scene("quick") as at:

        async def listed() -> int:
            return len((await at.jobs.operations.figures()).workers)

        with at.workers(processes=2, concurrency=3) as workers:

            async def both() -> bool:
                return await listed() == 2

            await eventually(both, "both are listed")
            found = (await at.jobs.operations.figures()).workers
            assert {worker.pid for worker in found} == {child.pid for child in workers.children()}
            assert {worker.concurrency for worker in found} == {3}
            workers.signal(signal.SIGTERM)
            assert await workers.ended() == 0
        assert await listed() == 0
