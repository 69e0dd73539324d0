"""Owners that die, fall silent or leave."""

from __future__ import annotations

import pytest
from tests.contracts.stores import NO_VIEW, Ports, body, new_job, outcome
from tests.contracts.test_ledger import types

from pipeserve.errors import StaleAttemptError
from pipeserve.jobs import JobStatus


async def test_a_job_whose_lease_ran_out_goes_to_the_next_who_asks(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("silent", 1)
    assert await ports.ledger.claim("next", 1) == []
    await ports.expire_leases()
    [claim] = await ports.ledger.claim("next", 1)
    assert (claim.job_id, claim.attempt) == (job.job_id, 2)
    assert await types(ports, job.job_id) == ["job_queued", "attempt_lost"]
    with pytest.raises(StaleAttemptError):
        await ports.ledger.append(job.job_id, 1, [body(job.job_id)], NO_VIEW)


async def test_a_renewed_lease_keeps_the_job_and_a_lost_one_is_reported(ports: Ports) -> None:
    kept, lost, canceled = new_job(), new_job(), new_job()
    for job in (kept, lost, canceled):
        await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 3)
    await ports.ledger.cancel(canceled.job_id)
    await ports.expire_leases()
    renewal = await ports.ledger.renew("owner", [kept.job_id, canceled.job_id])
    assert (renewal.lost, renewal.canceling) == ((), (canceled.job_id,))
    assert [claim.job_id for claim in await ports.ledger.claim("thief", 5)] == [lost.job_id]
    renewal = await ports.ledger.renew("owner", [kept.job_id, lost.job_id])
    assert renewal.lost == (lost.job_id,)


async def test_a_job_that_lost_all_its_attempts_fails_as_worker_lost(ports: Ports) -> None:
    job = new_job(max_attempts=2)
    await ports.ledger.submit(job)
    for attempt in (1, 2):
        assert [claim.attempt for claim in await ports.ledger.claim("owner", 1)] == [attempt]
        await ports.expire_leases()
    assert await ports.ledger.claim("owner", 1) == []
    ended = await ports.ledger.get(job.job_id)
    assert ended is not None
    assert ended.error is not None
    assert (ended.status, ended.error.code, ended.error.job_id) == (JobStatus.FAILED, "worker_lost", job.job_id)
    assert (await types(ports, job.job_id))[-1] == "pipeline_failed"
    with pytest.raises(StaleAttemptError):
        await ports.ledger.finish(job.job_id, 2, [], NO_VIEW, outcome(job.job_id, 2, JobStatus.FAILED))


async def test_a_drain_costs_no_attempt_however_often(ports: Ports) -> None:
    job = new_job(max_attempts=1)
    await ports.ledger.submit(job)
    for attempt in (1, 2, 3):
        [claim] = await ports.ledger.claim("owner", 1)
        assert claim.attempt == attempt
        assert await ports.ledger.release("owner", lost=False) == 1
        waiting = await ports.ledger.get(job.job_id)
        assert waiting is not None
        assert (waiting.status, waiting.queue_position) == (JobStatus.PENDING, 0)


async def test_a_crash_costs_an_attempt_and_touches_no_other_owners_jobs(ports: Ports) -> None:
    first, second = new_job(max_attempts=1), new_job(max_attempts=1)
    await ports.ledger.submit(first)
    await ports.ledger.submit(second)
    await ports.ledger.claim("crashed", 1)
    await ports.ledger.claim("alive", 1)
    assert await ports.ledger.release("crashed", lost=True) == 1
    assert await ports.ledger.release("crashed", lost=True) == 0
    jobs = [await ports.ledger.get(job.job_id) for job in (first, second)]
    assert [job.status for job in jobs if job] == [JobStatus.FAILED, JobStatus.RUNNING]


async def test_a_job_given_back_goes_before_younger_ones(ports: Ports) -> None:
    old, young = new_job(), new_job()
    await ports.ledger.submit(old)
    await ports.ledger.submit(young)
    await ports.ledger.claim("owner", 1)
    await ports.ledger.release("owner", lost=True)
    assert [claim.job_id for claim in await ports.ledger.claim("owner", 5)] == [old.job_id, young.job_id]


async def test_a_job_that_was_being_canceled_when_its_owner_died_is_canceled(ports: Ports) -> None:
    jobs = [new_job(), new_job()]
    for job, owner in zip(jobs, ("dies", "silent"), strict=True):
        await ports.ledger.submit(job)
        await ports.ledger.claim(owner, 1)
        await ports.ledger.cancel(job.job_id)
    await ports.ledger.release("dies", lost=True)
    await ports.expire_leases()
    await ports.ledger.claim("other", 5)
    for job in jobs:
        ended = await ports.ledger.get(job.job_id)
        assert ended is not None
        assert ended.status is JobStatus.CANCELED
        assert (await types(ports, job.job_id))[-1] == "pipeline_canceled"
