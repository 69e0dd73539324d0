"""Synchronous runs, recorded while they run or after they have ended."""

from __future__ import annotations

import time

import pytest
from tests.contracts.stores import NO_VIEW, Ports, body, finished_run, new_job, numbers, outcome
from tests.contracts.test_ledger import types

from pipeserve.errors import StaleAttemptError
from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import Cancellation, JobQuery


async def test_ended_runs_are_recorded_as_if_they_had_been_jobs(ports: Ports) -> None:
    now = time.time()
    runs = [finished_run(now), finished_run(now, labels={"a": "b"}), finished_run(now, keep_events=False)]
    await ports.ledger.record(runs)
    await ports.ledger.record(runs)  # a repetition changes nothing
    page = await ports.ledger.find(JobQuery(status=JobStatus.COMPLETED))
    assert page.total == 3
    job = await ports.ledger.get(runs[0].job.job_id)
    assert job is not None
    assert (job.status, job.attempt, job.outputs, job.execution_time) == (JobStatus.COMPLETED, 1, {"output": 42}, 0.25)
    assert job.progress.percent == 100.0
    assert job.created_at.timestamp() == pytest.approx(now - 0.3, abs=0.001)
    assert job.completed_at is not None
    assert job.completed_at.timestamp() == pytest.approx(now, abs=0.001)
    assert numbers(await ports.log.read(job.job_id)) == [1, 2, 3, 4]
    assert await types(ports, runs[2].job.job_id) == ["pipeline_completed"]
    figures = await ports.operations.figures()
    assert (figures.completed, figures.latency["sync"].p50) == (3, pytest.approx(0.25, rel=0.1))
    assert figures.last_execution == pytest.approx(now, abs=0.001)


async def test_recording_nothing_is_no_error(ports: Ports) -> None:
    await ports.ledger.record([])


async def test_an_open_run_is_a_running_job_that_nobody_can_claim(ports: Ports) -> None:
    job = new_job(keep_parameters=False, parameters=b'{"text":"a-marker-to-look-for"}')
    await ports.ledger.open(job, "api")
    assert await ports.ledger.claim("worker", 5) == []
    shown = await ports.ledger.get(job.job_id)
    assert shown is not None
    assert (shown.status, shown.attempt, shown.worker, shown.last_seq) == (JobStatus.RUNNING, 1, "api", 0)
    assert b"a-marker-to-look-for" not in await ports.everything()
    await ports.ledger.append(job.job_id, 1, [body(job.job_id)], NO_VIEW)
    assert await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
    assert numbers(await ports.log.read(job.job_id)) == [1, 2]


async def test_cancelling_an_open_run_writes_no_event_between_its_owners(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.open(job, "api")
    assert await ports.ledger.cancel(job.job_id) == Cancellation(JobStatus.CANCELING, already_finished=False)
    assert await ports.log.read(job.job_id) == []
    renewal = await ports.ledger.renew("api", [job.job_id])
    assert renewal.canceling == (job.job_id,)
    assert await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id, status=JobStatus.CANCELED))


@pytest.mark.parametrize("end", ["lease", "crash", "drain"])
async def test_an_open_run_whose_process_is_gone_is_worker_lost_at_once(ports: Ports, end: str) -> None:
    job = new_job(max_attempts=3)
    await ports.ledger.open(job, "api")
    if end == "lease":
        await ports.expire_leases()
        assert await ports.ledger.claim("worker", 5) == []
    else:
        assert await ports.ledger.release("api", lost=end == "crash") == 1
    ended = await ports.ledger.get(job.job_id)
    assert ended is not None
    assert ended.error is not None
    assert (ended.status, ended.error.code) == (JobStatus.FAILED, "worker_lost")
    assert await types(ports, job.job_id) == ["pipeline_failed"]
    with pytest.raises(StaleAttemptError):
        await ports.ledger.append(job.job_id, 1, [body(job.job_id)], NO_VIEW)
