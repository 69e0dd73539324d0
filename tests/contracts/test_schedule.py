"""Jobs that are to start later."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from tests.contracts.stores import Ports, new_job

from pipeserve.errors import QueueFullError
from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import LogEntry


def in_(seconds: float, **changes: Any) -> Any:
    """A job that is to start so many seconds from now."""
    return new_job(run_at=time.time() + seconds, **changes)


async def test_a_scheduled_job_is_not_claimed_before_its_time(ports: Ports) -> None:
    job = in_(25)
    admission = await ports.ledger.submit(job)
    assert (admission.replayed, admission.queue_position) == (False, None)
    assert await ports.ledger.claim("worker", 5) == []
    shown = await ports.ledger.get(job.job_id)
    assert shown is not None
    assert shown.run_at is not None
    assert (shown.status, shown.queue_position, shown.attempt) == (JobStatus.PENDING, None, 0)
    assert shown.run_at.timestamp() == pytest.approx(job.run_at, abs=0.001)

    await ports.pass_time(20)
    assert await ports.ledger.claim("worker", 5) == []
    await ports.pass_time(6)
    [claim] = await ports.ledger.claim("worker", 5)
    assert claim.job_id == job.job_id
    assert claim.due_at - claim.created_at == pytest.approx(25, abs=5)
    assert claim.due_at <= claim.claimed_at


async def test_its_first_event_says_that_it_has_no_place_in_the_queue_yet(ports: Ports) -> None:
    job = in_(25)
    await ports.ledger.submit(job)
    [entry] = await ports.log.read(job.job_id)
    assert isinstance(entry, LogEntry)
    assert json.loads(entry.body)["data"] == {"queue_position": None}


async def test_a_job_without_a_time_is_due_when_it_is_accepted(ports: Ports) -> None:
    for job in (new_job(), in_(-100)):
        admission = await ports.ledger.submit(job)
        assert admission.queue_position == 0
        [claim] = await ports.ledger.claim("worker", 5)
        assert claim.due_at == claim.created_at


async def test_a_claim_says_when_the_first_scheduled_job_is_due(ports: Ports) -> None:
    first = in_(30)
    for job in (in_(60), first, in_(90)):
        await ports.ledger.submit(job)
    claims, next_due = await ports.ledger.claim_batch("worker", 5)
    assert claims == []
    assert next_due == pytest.approx(first.run_at * 1000, abs=1)


async def test_a_beat_lines_up_what_is_due(ports: Ports) -> None:
    job = in_(20)
    await ports.ledger.submit(job)
    await ports.pass_time(21)
    await ports.ledger.renew("worker", [])
    shown = await ports.ledger.get(job.job_id)
    assert shown is not None
    assert shown.queue_position == 0


async def test_a_job_that_was_due_earlier_goes_before_one_that_was_accepted_later(ports: Ports) -> None:
    later, sooner = in_(20), in_(10)
    for job in (later, sooner):
        await ports.ledger.submit(job)
    await ports.pass_time(25)
    last = new_job()
    await ports.ledger.submit(last)
    claims = await ports.ledger.claim("worker", 5)
    assert [claim.job_id for claim in claims] == [sooner.job_id, later.job_id, last.job_id]


async def test_scheduled_jobs_count_as_waiting_but_not_as_old(ports: Ports) -> None:
    for _ in range(ports.max_queue_size):
        await ports.ledger.submit(in_(100))
    with pytest.raises(QueueFullError):
        await ports.ledger.submit(new_job())
    figures = await ports.operations.figures()
    assert (figures.queue_depth, figures.oldest_job_age) == (ports.max_queue_size, 0.0)


async def test_a_scheduled_job_can_be_canceled(ports: Ports) -> None:
    job = in_(10)
    await ports.ledger.submit(job)
    found = await ports.ledger.cancel(job.job_id)
    assert found is not None
    assert found.status is JobStatus.CANCELED
    await ports.pass_time(11)
    assert await ports.ledger.claim("worker", 5) == []
    assert (await ports.operations.figures()).queue_depth == 0


async def test_a_job_that_was_given_back_does_not_wait_for_its_time_again(ports: Ports) -> None:
    job = in_(10)
    await ports.ledger.submit(job)
    await ports.pass_time(11)
    await ports.ledger.claim("dies", 1)
    await ports.ledger.release("dies", lost=True)
    [claim] = await ports.ledger.claim("worker", 1)
    assert (claim.job_id, claim.attempt) == (job.job_id, 2)
