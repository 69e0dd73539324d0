"""What an ended job was submitted as, so that it can be submitted again."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from tests.contracts.stores import NO_VIEW, Ports, finished_run, new_job, outcome

from pipeserve.errors import NotRetryableError
from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import IdempotencyKey, NewJob, Webhook


async def ended(ports: Ports, status: JobStatus = JobStatus.COMPLETED, **changes: Any) -> NewJob:
    """A job that has run to its end."""
    job = new_job(**changes)
    await ports.ledger.submit(job)
    await ports.ledger.claim("worker", 1)
    await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id, status=status))
    return job


@pytest.mark.parametrize("status", [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.TIMED_OUT, JobStatus.CANCELED])
async def test_an_ended_job_can_be_submitted_again_as_it_was(ports: Ports, status: JobStatus) -> None:
    job = await ended(
        ports,
        status,
        parameters=b'{"n":12345678901234567890123,"text":"\\u2713"}',
        labels={"team": "red"},
        timeout=2.5,
        max_attempts=7,
        cache="no-cache",
        lane="team red",
        priority=4,
        webhook=Webhook("https://example.com/hook", ("pipeline_completed", "step_completed")),
        run_at=time.time() - 10,
        expires_in=600.0,
        idempotency=IdempotencyKey("body", "key"),
    )
    found = await ports.ledger.input_of(job.job_id)
    assert found is not None
    assert found == replace(job, idempotency=None, run_at=None, expires_in=None)

    again = replace(found, job_id=new_job().job_id, retried_from=job.job_id)
    await ports.ledger.submit(again)
    [claim] = await ports.ledger.claim("worker", 1)
    assert (claim.job_id, claim.parameters, claim.timeout) == (again.job_id, job.parameters, 2.5)
    shown = await ports.ledger.get(again.job_id)
    assert shown is not None
    assert (shown.retried_from, shown.labels, shown.priority) == (job.job_id, {"team": "red"}, 4)
    await ports.ledger.finish(again.job_id, 1, [], NO_VIEW, outcome(again.job_id))
    once_more = await ports.ledger.input_of(again.job_id)
    assert once_more == replace(found, job_id=again.job_id)


async def test_a_job_that_never_ran_can_be_submitted_again(ports: Ports) -> None:
    canceled, expired = new_job(), new_job(expires_in=10)
    for job in (canceled, expired):
        await ports.ledger.submit(job)
    await ports.ledger.cancel(canceled.job_id)
    await ports.pass_time(11)
    await ports.ledger.claim("worker", 1)
    for job in (canceled, expired):
        found = await ports.ledger.input_of(job.job_id)
        assert found is not None
        assert found.parameters == job.parameters


async def test_a_synchronous_run_can_be_submitted_as_a_job(ports: Ports) -> None:
    run = finished_run(time.time())
    await ports.ledger.record([run])
    assert await ports.ledger.input_of(run.job.job_id) == run.job


async def test_there_is_no_input_of_a_job_that_is_not_there(ports: Ports) -> None:
    assert await ports.ledger.input_of(new_job().job_id) is None
    job = await ended(ports)
    await ports.expire_records()
    assert await ports.ledger.input_of(job.job_id) is None


async def test_a_job_that_has_not_ended_is_not_retryable(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    with pytest.raises(NotRetryableError):
        await ports.ledger.input_of(job.job_id)
    await ports.ledger.claim("worker", 1)
    with pytest.raises(NotRetryableError):
        await ports.ledger.input_of(job.job_id)
    await ports.ledger.cancel(job.job_id)  # its owner has not stopped yet
    with pytest.raises(NotRetryableError):
        await ports.ledger.input_of(job.job_id)


@pytest.mark.parametrize(
    "kept",
    [
        {"keep_parameters": False},
        {"keep_parameters": False, "keep_events": False},
        {"shown_parameters": b'{"text":"***"}'},
        {"keep_parameters": False, "shown_parameters": b'{"text":"***"}'},
    ],
    ids=["not kept", "memory only", "masked", "masked and not kept"],
)
async def test_a_job_whose_true_parameters_are_gone_is_not_retryable(ports: Ports, kept: dict[str, Any]) -> None:
    job = await ended(ports, **kept)
    with pytest.raises(NotRetryableError) as refused:
        await ports.ledger.input_of(job.job_id)
    assert refused.value.job_id == job.job_id
    run = finished_run(time.time(), **kept)
    await ports.ledger.record([run])
    with pytest.raises(NotRetryableError):
        await ports.ledger.input_of(run.job.job_id)
