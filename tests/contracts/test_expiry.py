"""Jobs that are of no use unless they start in time."""

from __future__ import annotations

import time

import pytest
from tests.contracts.stores import NO_VIEW, Ports, new_job, outcome
from tests.contracts.test_ledger import types

from pipeserve.jobs import Job, JobStatus
from pipeserve.runtime.ports import JobQuery, NewJob


async def shown(ports: Ports, job: NewJob) -> Job:
    """The job as it is now."""
    found = await ports.ledger.get(job.job_id)
    assert found is not None
    return found


@pytest.mark.parametrize("looked_at_by", ["claim", "renew"])
async def test_a_job_that_has_not_started_in_time_expires(ports: Ports, looked_at_by: str) -> None:
    job = new_job(expires_in=20)
    await ports.ledger.submit(job)
    before = await shown(ports, job)
    assert before.expires_at is not None
    assert (before.expires_at - before.created_at).total_seconds() == pytest.approx(20, abs=0.001)

    await ports.pass_time(21)
    if looked_at_by == "claim":
        assert await ports.ledger.claim("worker", 5) == []
    else:
        await ports.ledger.renew("worker", [])
    ended = await shown(ports, job)
    assert ended.error is not None
    assert (ended.status, ended.error.code, ended.error.job_id) == (JobStatus.EXPIRED, "expired", job.job_id)
    assert (ended.attempt, ended.started_at, ended.queue_position) == (0, None, None)
    assert ended.completed_at is not None
    assert await types(ports, job.job_id) == ["job_queued", "pipeline_expired"]
    figures = await ports.operations.figures()
    assert (figures.failed, figures.queue_depth, figures.jobs_by_status["expired"]) == (1, 0, 1)
    assert [found.job_id for found in (await ports.ledger.find(JobQuery(code="expired"))).jobs] == [job.job_id]


async def test_a_job_expires_only_once_its_time_has_passed(ports: Ports) -> None:
    job = new_job(expires_in=20)
    await ports.ledger.submit(job)
    await ports.pass_time(15)
    await ports.ledger.renew("worker", [])
    assert (await shown(ports, job)).status is JobStatus.PENDING
    assert [claim.job_id for claim in await ports.ledger.claim("worker", 5)] == [job.job_id]


async def test_a_job_that_has_started_expires_no_more_even_if_it_waits_again(ports: Ports) -> None:
    job = new_job(expires_in=20)
    await ports.ledger.submit(job)
    await ports.ledger.claim("drains", 1)
    await ports.ledger.release("drains", lost=False)
    await ports.pass_time(100)
    await ports.ledger.renew("worker", [])
    [claim] = await ports.ledger.claim("worker", 1)
    assert claim.attempt == 2
    assert await ports.ledger.finish(job.job_id, 2, [], NO_VIEW, outcome(job.job_id, 2))


async def test_a_job_that_was_canceled_in_time_stays_canceled(ports: Ports) -> None:
    job = new_job(expires_in=20)
    await ports.ledger.submit(job)
    await ports.ledger.cancel(job.job_id)
    await ports.pass_time(25)
    await ports.ledger.claim("worker", 1)
    assert (await shown(ports, job)).status is JobStatus.CANCELED
    assert (await types(ports, job.job_id))[-1] == "pipeline_canceled"


async def test_a_job_can_expire_before_it_is_due(ports: Ports) -> None:
    job = new_job(run_at=time.time() + 60, expires_in=20)
    await ports.ledger.submit(job)
    await ports.pass_time(25)
    await ports.ledger.renew("worker", [])
    assert (await shown(ports, job)).status is JobStatus.EXPIRED
    await ports.pass_time(60)
    assert await ports.ledger.claim("worker", 1) == []


async def test_an_expired_job_makes_room_for_others_of_its_lane(ports: Ports) -> None:
    late, kept = new_job(expires_in=20, lane="a"), new_job(lane="a")
    for job in (late, kept):
        await ports.ledger.submit(job)
    await ports.pass_time(25)
    assert [claim.job_id for claim in await ports.ledger.claim("worker", 1)] == [kept.job_id]
    assert await ports.ledger.cancel(late.job_id) is not None
    assert (await shown(ports, late)).status is JobStatus.EXPIRED
