"""The store goes away and comes back: workers and their jobs go on."""

from __future__ import annotations

import pytest
from tests.worker.harness import eventually, lines, scene

from pipeserve.jobs import JobStatus

pytestmark = pytest.mark.e2e


async def test_jobs_that_run_through_a_restart_of_the_store_finish_when_it_is_back():
    async with scene("hold") as at:
        started, until = at.folder / "started", at.folder / "until"
        with at.workers(concurrency=2) as workers:
            job_id = await at.submit(started=str(started), until=str(until))
            await eventually(lambda: lines(started), "it runs")
            at.valkey.kill()
            until.touch()  # it ends while there is no store
            await eventually(lambda: "the store is away" in workers.log, "the worker noticed")
            at.valkey.start()
            [job] = await at.finished(job_id)
            assert job.status is JobStatus.COMPLETED
            assert job.attempt == 1
            assert len(lines(started)) == 1, "it ran once"

            after = await at.submit(started=str(started), until=str(until))
            [job] = await at.finished(after)
            assert job.status is JobStatus.COMPLETED
            assert len(workers.children()) == 1
            assert workers.ready() == 1, "no process died of it"


async def test_a_worker_that_starts_before_its_store_waits_for_it():
    async with scene("quick") as at:
        done = at.folder / "done"
        job_id = await at.submit(path=str(done))
        at.valkey.kill()
        with at.workers() as workers:
            await eventually(lambda: "waiting for the store" in workers.log, "it waits")
            at.valkey.start()
            [job] = await at.finished(job_id)
            assert job.status is JobStatus.COMPLETED
