"""The queue's scripts where records, indexes and the store itself are not as usual."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
from tests.contracts.stores import NO_VIEW, body, new_job, outcome, picture

from pipeserve.errors import StoreUnavailableError
from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import IdempotencyKey, JobQuery
from pipeserve.store import DeploymentStore


@pytest.fixture
def redis(deployment_store: DeploymentStore) -> Any:
    """The store's own client."""
    return deployment_store.redis


async def test_a_job_under_an_id_that_was_used_before_is_listed_as_what_it_is_alone(
    deployment_store: DeploymentStore, redis: Any
) -> None:
    ledger, keys = deployment_store.ledger, deployment_store.keys
    job = new_job(labels={"a": "b"}, idempotency=IdempotencyKey("body"))
    await ledger.submit(job)
    await ledger.claim("worker", 1)
    await ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id, status=JobStatus.FAILED))
    await redis.delete(keys.job(job.job_id), keys.events(job.job_id))  # as if its lifetime had passed
    for member in await redis.zrange(keys.prefix + "expiring", 0, -1):
        await redis.zadd(keys.prefix + "expiring", {member: 1})

    assert not (await ledger.submit(replace(job, labels={}))).replayed
    await deployment_store.operations.figures()  # forgets what lists expired records
    assert [found.job_id for found in (await ledger.find(JobQuery())).jobs] == [job.job_id]
    assert (await ledger.find(JobQuery(labels={"a": "b"}))).total == 0
    assert (await ledger.find(JobQuery(code="step_failed"))).total == 0
    assert (await ledger.find(JobQuery(status=JobStatus.FAILED))).total == 0
    await ledger.cancel(job.job_id)


async def test_a_job_that_has_expired_leaves_its_callers_list_and_its_id_may_be_anothers(
    deployment_store: DeploymentStore, redis: Any
) -> None:
    ledger, keys = deployment_store.ledger, deployment_store.keys
    gone, again = new_job(caller="a"), new_job(caller="a", idempotency=IdempotencyKey("body"))
    for job in (gone, again):
        await ledger.submit(job)
    await ledger.claim("worker", 2)
    for job in (gone, again):
        await ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
        await redis.delete(keys.job(job.job_id), keys.events(job.job_id))  # as if its lifetime had passed
    assert not (await ledger.submit(replace(again, caller="b"))).replayed
    assert (await ledger.find(JobQuery(caller="b"))).total == 1
    for member in await redis.zrange(keys.prefix + "expiring", 0, -1):
        await redis.zadd(keys.prefix + "expiring", {member: 1})
    await deployment_store.operations.figures()  # forgets what lists expired records
    assert (await ledger.find(JobQuery(caller="a"))).total == 0
    assert [job.job_id for job in (await ledger.find(JobQuery(caller="b"))).jobs] == [again.job_id]
    assert (await redis.zcard(keys.owned), await redis.hlen(keys.prefix + "owners")) == (1, 1)
    await ledger.cancel(again.job_id)


async def test_behind_very_many_lanes_a_newcomer_is_told_that_they_go_first(deployment_store: DeploymentStore) -> None:
    ledger = deployment_store.ledger
    admissions = [await ledger.submit(new_job(lane=f"{n:03}")) for n in range(130)]
    assert [admission.queue_position for admission in admissions] == list(range(130))
    for admission in admissions:
        await ledger.cancel(admission.job_id)


async def test_a_lane_without_a_turn_fails_no_look_at_its_jobs(deployment_store: DeploymentStore, redis: Any) -> None:
    ledger, jobs = deployment_store.ledger, [new_job(lane=lane) for lane in "ab"]
    for job in jobs:
        await ledger.submit(job)
    await redis.delete(deployment_store.keys.prefix + "lanes")
    shown = await ledger.get(jobs[0].job_id)
    assert shown is not None
    assert shown.status is JobStatus.PENDING
    await ledger.reconcile("worker")
    assert len(await ledger.claim("worker", 5)) == 2
    await ledger.release("worker", lost=False)


async def test_a_claim_renews_the_queues_entry_so_that_it_is_there_when_the_job_starts(
    deployment_store: DeploymentStore, redis: Any
) -> None:
    job = new_job()
    await deployment_store.ledger.submit(job)
    await redis.expire(f"arq:job:{job.job_id}", 10)
    await deployment_store.ledger.claim("worker", 1)
    assert await redis.ttl(f"arq:job:{job.job_id}") > 86_400
    await deployment_store.ledger.release("worker", lost=False)


async def test_while_a_job_runs_the_indexes_stay_whatever_expired_when_it_was_claimed(
    deployment_store: DeploymentStore, redis: Any
) -> None:
    ledger, keys = deployment_store.ledger, deployment_store.keys
    late, job = new_job(expires_in=1000.0), new_job()
    for submitted in (late, job):
        await ledger.submit(submitted)
    await _make_late(redis, deployment_store, late.job_id)
    assert [claim.job_id for claim in await ledger.claim("worker", 5)] == [job.job_id]
    assert await redis.ttl(keys.jobs) == -1
    await ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
    assert await redis.ttl(keys.jobs) > 0


async def test_one_claim_ends_a_bounded_number_of_jobs_that_are_too_late(
    deployment_store: DeploymentStore, redis: Any
) -> None:
    ledger = deployment_store.ledger
    jobs = [new_job(expires_in=1000.0) for _ in range(450)]
    await ledger.submit_many([*jobs, last := new_job()])
    for job in jobs:
        await _make_late(redis, deployment_store, job.job_id)
    claims, next_due = await ledger.claim_batch("worker", 1)
    assert claims == []
    assert next_due is not None  # to look again at once
    assert next_due / 1000 <= time.time() + 1
    figures = await deployment_store.operations.figures()
    assert 100 <= figures.jobs_by_status["expired"] <= 200
    while not claims:
        claims = await ledger.claim("worker", 1)
    assert claims[0].job_id == last.job_id
    assert (await deployment_store.operations.figures()).jobs_by_status["expired"] == 450
    await ledger.release("worker", lost=False)


async def _make_late(redis: Any, store: DeploymentStore, job_id: str) -> None:
    """As if it should have been started long ago, and the list of such jobs had not been looked at so far."""
    await redis.hset(store.keys.job(job_id), "expires_at", 1)
    await redis.zrem(store.keys.prefix + "expiry", job_id)


@contextlib.asynccontextmanager
async def full(redis: Any) -> AsyncGenerator[None]:
    """The store takes nothing new meanwhile."""
    await redis.execute_command("CONFIG SET", "maxmemory", 1)
    try:
        yield
    finally:
        await redis.execute_command("CONFIG SET", "maxmemory", 0)


async def running(store: DeploymentStore) -> tuple[str, list[bytes]]:
    """A job in its first attempt, and three events of it."""
    job_id = new_job().job_id
    await store.ledger.submit(new_job(job_id=job_id))
    await store.ledger.claim("worker", 1)
    return job_id, [body(job_id, message=f"line {n}") for n in range(3)]


async def test_on_a_full_store_a_job_ends_whose_events_it_refused_before(
    deployment_store: DeploymentStore, redis: Any
) -> None:
    ledger = deployment_store.ledger
    job_id, events = await running(deployment_store)
    async with full(redis):
        for count in (1, 2):  # a recorder sends again what was not taken
            with pytest.raises(StoreUnavailableError, match="is full"):
                await ledger.append(job_id, 1, events[:count], NO_VIEW)
        assert await ledger.finish(job_id, 1, events, NO_VIEW, outcome(job_id))
    shown = await ledger.get(job_id)
    assert shown is not None
    assert (shown.status, shown.last_seq) == (JobStatus.COMPLETED, 5)  # queued, three lines, completed


async def test_a_full_store_takes_what_the_end_of_a_job_waits_for(
    deployment_store: DeploymentStore, redis: Any
) -> None:
    ledger, attachments = deployment_store.ledger, deployment_store.attachments
    job_id, events = await running(deployment_store)
    async with full(redis):
        with pytest.raises(StoreUnavailableError, match="is full"):
            await attachments.add(job_id, 1, [picture()])
        await attachments.add(job_id, 1, [picture()], ending=True)
        with pytest.raises(StoreUnavailableError, match="is full"):
            await ledger.append(job_id, 1, events, NO_VIEW)
        assert await ledger.append(job_id, 1, events, NO_VIEW, ending=True) == 4
        assert await ledger.finish(job_id, 1, [], NO_VIEW, outcome(job_id))
    assert [kept.index for kept in await attachments.list(job_id)] == [1]
