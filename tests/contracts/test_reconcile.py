"""The look at all live jobs that sets right what nothing should have left."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.contracts.stores import NO_VIEW, Ports, new_job, outcome

from pipeserve.jobs import Job, JobStatus
from pipeserve.runtime.ports import Reconciliation
from pipeserve.store import DeploymentStore


async def every_job(ports: Ports) -> list[Job]:
    """Some jobs, one in each state."""
    waits, scheduled, runs, stops, ends = jobs = [
        new_job(lane="a"),
        new_job(run_at=time.time() + 100),
        new_job(priority=1),
        new_job(),
        new_job(),
    ]
    for job in (runs, stops, ends):
        await ports.ledger.submit(job)
    await ports.ledger.claim("worker", 3)
    for job in (waits, scheduled):
        await ports.ledger.submit(job)
    await ports.ledger.cancel(stops.job_id)
    await ports.ledger.finish(ends.job_id, 1, [], NO_VIEW, outcome(ends.job_id))
    found = [await ports.ledger.get(job.job_id) for job in jobs]
    return [job for job in found if job is not None]


async def test_where_all_is_well_nothing_is_touched(ports: Ports) -> None:
    before = await every_job(ports)
    assert [job.status.value for job in before] == ["pending", "pending", "running", "canceling", "completed"]
    assert await ports.ledger.reconcile("worker") == Reconciliation()
    assert [await ports.ledger.get(job.job_id) for job in before] == before
    await ports.ledger.release("worker", lost=False)


async def test_of_many_one_looks_and_the_others_need_not_for_a_while(ports: Ports) -> None:
    found = await asyncio.gather(*(ports.ledger.reconcile(f"worker {n}") for n in range(5)))
    assert [reconciliation for reconciliation in found if reconciliation is not None] == [Reconciliation()]
    assert await ports.ledger.reconcile("worker 0") is None
    await ports.pass_time(31)
    assert await ports.ledger.reconcile("worker 1") == Reconciliation()


@pytest.fixture
def redis(deployment_store: DeploymentStore) -> Any:
    """The store's own client: what breaks things here."""
    return deployment_store.redis


@pytest.mark.parametrize("lost", ["queue", "lane:", "lanes"])
async def test_a_job_that_waits_in_no_queue_is_queued_again(
    deployment_store: DeploymentStore, redis: Any, lost: str
) -> None:
    ledger, jobs = deployment_store.ledger, [new_job() for _ in range(3)]
    for job in jobs:
        await ledger.submit(job)
    await redis.delete(deployment_store.keys.prefix + lost)
    found = await ledger.reconcile("worker")
    assert found is not None
    assert (found.queued, found.released) == (3 if lost != "lanes" else found.queued, 0)
    assert found.queued > 0
    claims = await ledger.claim("worker", 5)
    assert [claim.job_id for claim in claims] == [job.job_id for job in jobs]


async def test_a_scheduled_job_that_was_lost_waits_for_its_time_again(
    deployment_store: DeploymentStore, redis: Any
) -> None:
    ledger, job = deployment_store.ledger, new_job(run_at=time.time() + 100)
    await ledger.submit(job)
    for name in ("queue", "scheduled"):
        await redis.delete(deployment_store.keys.prefix + name)
    assert await ledger.reconcile("worker") == Reconciliation(queued=1)
    claims, next_due = await ledger.claim_batch("worker", 5)
    assert claims == []
    assert next_due == pytest.approx(job.run_at * 1000 if job.run_at else 0, abs=1)


async def test_a_job_that_runs_under_no_lease_is_given_back_or_ended(
    deployment_store: DeploymentStore, redis: Any
) -> None:
    ledger, again, canceled = deployment_store.ledger, new_job(), new_job()
    for job in (again, canceled):
        await ledger.submit(job)
    await ledger.claim("gone", 2)
    await ledger.cancel(canceled.job_id)
    await redis.delete(deployment_store.keys.running)
    assert await ledger.reconcile("worker") == Reconciliation(released=2)
    [claim] = await ledger.claim("worker", 5)
    assert (claim.job_id, claim.attempt) == (again.job_id, 2)
    ended = await ledger.get(canceled.job_id)
    assert ended is not None
    assert ended.status is JobStatus.CANCELED


async def test_what_lists_a_job_that_is_gone_forgets_it(deployment_store: DeploymentStore, redis: Any) -> None:
    ledger, gone, kept = deployment_store.ledger, new_job(labels={"a": "b"}), new_job()
    for job in (gone, kept):
        await ledger.submit(job)
    keys = deployment_store.keys
    await redis.delete(keys.job(gone.job_id), keys.events(gone.job_id))
    found = await ledger.reconcile("worker")
    assert found is not None
    assert (found.queued, found.released, found.forgotten > 0) == (0, 0, True)
    figures = await deployment_store.operations.figures()
    assert (figures.queue_depth, figures.jobs_by_status["pending"]) == (1, 1)
    assert [claim.job_id for claim in await ledger.claim("worker", 5)] == [kept.job_id]
