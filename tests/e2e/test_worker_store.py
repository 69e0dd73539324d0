"""The store goes away and comes back: workers and their jobs go on."""

from __future__ import annotations

import signal

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


async def test_runs_of_a_store_that_was_emptied_are_stopped_and_workers_go_on():
    async with scene("hold") as at:
        started, until = at.folder / "started", at.folder / "until"
        with at.workers(PIPESERVE_LEASE_SECONDS="1") as workers:
            await at.submit(started=str(started), until=str(until))
            await eventually(lambda: lines(started), "it runs")
            with at.valkey.client() as client:
                client.flushall()
            await eventually(lambda: "was emptied" in workers.log, "it is said")
            await eventually(lambda: "lease lost; the run is stopped" in workers.log, "the run is stopped")
            until.touch()
            after = await at.submit(started=str(started), until=str(until))
            [job] = await at.finished(after)
            assert job.status is JobStatus.COMPLETED
            assert workers.ready() == 1, "no process died of it"


async def test_a_process_that_starts_just_after_the_store_was_emptied_waits_for_its_deployment():
    async with scene("hold") as at:
        started, until = at.folder / "started", at.folder / "until"
        with at.workers(processes=2, concurrency=1, PIPESERVE_LEASE_SECONDS="3") as workers:
            await eventually(lambda: workers.ready() == 2, "both are ready")
            victim, _ = workers.children()
            with at.valkey.client() as client:
                client.flushall()
            victim.kill()
            await eventually(lambda: workers.ready() == 3, "another took its place")
            jobs = [await at.submit(started=str(started), until=str(until)) for _ in range(2)]
            await eventually(lambda: len(lines(started)) == 2, "both work")
            until.touch()
            await at.finished(*jobs)


async def test_a_job_that_fell_out_of_the_queue_is_found_again():
    async with scene("quick") as at:
        job_id = await at.submit(path=str(at.folder / "done"))
        keys = at.jobs.keys
        with at.valkey.client() as client:
            for key in client.scan_iter(f"{keys.prefix}*"):
                if client.type(key) == b"zset" and b":status:" not in key and not key.endswith(b":jobs"):
                    client.zrem(key, job_id)
        with at.workers() as workers:
            [job] = await at.finished(job_id)
            assert job.status is JobStatus.COMPLETED
            assert "the ledger was set right" in workers.log


async def test_a_stop_does_not_wait_for_a_store_that_is_away():
    async with scene("quick") as at:
        at.valkey.kill()
        with at.workers() as workers:
            await eventually(lambda: "waiting for the store" in workers.log, "it waits")
            workers.signal(signal.SIGTERM)
            assert await workers.ended() == 0
        at.valkey.start()


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
