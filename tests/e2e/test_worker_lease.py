"""Leases and fences: a silent owner loses its job and can't write any more; a busy one doesn't lose it."""

from __future__ import annotations

import signal

import psutil
import pytest
from tests.worker.harness import eventually, lines, scene

from pipeserve.jobs import JobStatus

pytestmark = pytest.mark.e2e

SHORT = {"lease_seconds": 1.0}


async def test_a_stopped_worker_that_wakes_past_its_lease_changes_nothing():
    async with scene("hold", **SHORT) as at:
        started, until = at.folder / "started", at.folder / "until"
        with (
            at.workers(PIPESERVE_LEASE_SECONDS="1") as sleeper,
            at.workers(PIPESERVE_LEASE_SECONDS="1") as other,
        ):
            job_id = await at.submit(started=str(started), until=str(until))
            await eventually(lambda: lines(started), "it runs")
            pid = int(lines(started)[0][2])
            sleeping = sleeper if pid in {child.pid for child in sleeper.children()} else other
            psutil.Process(pid).send_signal(signal.SIGSTOP)
            await eventually(lambda: len(lines(started)) == 2, "the other worker takes it over")
            assert lines(started)[1][1] == "2"
            psutil.Process(pid).send_signal(signal.SIGCONT)
            await eventually(lambda: "fenced" in sleeping.log, "the sleeper finds that it lost the job")
            assert (await at.job(job_id)).status is JobStatus.RUNNING, "and changed nothing"
            until.touch()
            [job] = await at.finished(job_id)
            assert job.status is JobStatus.COMPLETED
            assert job.attempt == 2
            assert await at.terminal_events(job_id) == ["pipeline_completed"]


async def test_a_step_that_blocks_the_loop_for_longer_than_the_lease_keeps_its_job():
    async with scene("blocking", **SHORT) as at:
        path = at.folder / "path"
        with at.workers(processes=2, concurrency=1, PIPESERVE_LEASE_SECONDS="1"):
            job_id = await at.submit(path=str(path), seconds=2.5)
            [job] = await at.finished(job_id)
            assert job.status is JobStatus.COMPLETED
            assert len(lines(path)) == 1, "it ran once"


async def test_a_job_of_a_host_that_is_gone_goes_on_when_its_lease_runs_out():
    async with scene("hold", **SHORT) as at:
        started, until = at.folder / "started", at.folder / "until"
        with at.workers(PIPESERVE_LEASE_SECONDS="1") as gone:
            job_id = await at.submit(started=str(started), until=str(until))
            await eventually(lambda: lines(started), "it runs")
            children = gone.children()
            for child in children:  # first, so that no drain hands the job back
                child.send_signal(signal.SIGSTOP)
            gone.signal(signal.SIGKILL)
            for child in children:
                child.kill()
            until.touch()
            with at.workers(PIPESERVE_LEASE_SECONDS="1"):
                [job] = await at.finished(job_id)
            assert job.status is JobStatus.COMPLETED
            assert job.attempt == 2
