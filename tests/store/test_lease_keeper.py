"""Leases that a thread keeps alive."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from tests.contracts.stores import NO_VIEW, new_job, outcome
from tests.store.test_embedded import server_pid
from tests.store_fixtures import wait_until

from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import WorkerInfo
from pipeserve.settings import StoreSettings
from pipeserve.store import DeploymentStore, LeaseKeeper, WakeUps, open_store
from pipeserve.store.embedded import start_embedded

pytestmark = pytest.mark.e2e

LEASE = 1.0
"""As in the fixture's settings."""


async def test_a_kept_job_stays_with_an_owner_that_blocks_its_loop(
    store_url: str, deployment_store: DeploymentStore
) -> None:
    job = new_job()
    await deployment_store.ledger.submit(job)
    await deployment_store.ledger.claim("owner", 1)
    with LeaseKeeper(store_url, deployment_store.keys, "owner", LEASE) as keeper:
        keeper.add(job.job_id)
        time.sleep(2.2 * LEASE)  # noqa: ASYNC251 - what a pipeline that blocks the loop does
        assert await deployment_store.ledger.claim("thief", 1) == []
        assert await deployment_store.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
        keeper.discard(job.job_id)


async def test_a_job_that_nobody_keeps_is_retaken_within_the_lease(deployment_store: DeploymentStore) -> None:
    job = new_job()
    await deployment_store.ledger.submit(job)
    await deployment_store.ledger.claim("silent", 1)
    started = time.monotonic()
    claims = await wait_until(
        lambda: deployment_store.ledger.claim("next", 1), description="the job is retaken", seconds=LEASE + 2
    )
    assert claims[0].attempt == 2
    assert time.monotonic() - started >= LEASE / 2
    await deployment_store.ledger.release("next", lost=False)


async def test_it_tells_of_lost_and_canceled_jobs(store_url: str, deployment_store: DeploymentStore) -> None:
    lost, canceled = new_job(), new_job()
    told_lost: list[str] = []
    told_canceled: list[str] = []
    for job in (lost, canceled):
        await deployment_store.ledger.submit(job)
    await deployment_store.ledger.claim("owner", 1)
    await deployment_store.ledger.release("owner", lost=True)
    await deployment_store.ledger.claim("thief", 1)
    await deployment_store.ledger.claim("owner", 1)
    await deployment_store.ledger.cancel(canceled.job_id)
    with LeaseKeeper(
        store_url,
        deployment_store.keys,
        "owner",
        LEASE,
        on_lost=told_lost.append,
        on_cancel=told_canceled.append,
    ) as keeper:
        keeper.add(lost.job_id)
        keeper.add(canceled.job_id)
        await wait_until(lambda: told_lost and told_canceled, description="it was told")
    assert told_lost == [lost.job_id]
    assert set(told_canceled) == {canceled.job_id}


async def test_workers_are_listed_while_they_beat_and_gone_when_released(
    store_url: str, deployment_store: DeploymentStore
) -> None:
    info = WorkerInfo(id="owner", host="h", pid=1, started_at="2026-01-31T12:00:00Z", busy=2, concurrency=10)

    async def listed() -> list[WorkerInfo]:
        return list((await deployment_store.operations.figures()).workers)

    with LeaseKeeper(store_url, deployment_store.keys, "owner", LEASE, lambda: info):
        assert await wait_until(listed, description="the worker is listed") == [info]
    await deployment_store.ledger.release("owner", lost=False)
    assert await listed() == []


async def test_owners_keep_their_jobs_over_an_outage_longer_than_the_lease(short_dir: Path) -> None:
    async with start_embedded(short_dir) as url:
        settings = StoreSettings.from_environment(redis_url=url, lease_seconds=LEASE)
        async with open_store(settings) as store, store.deployment("d") as deployment:
            job = new_job()
            await deployment.ledger.submit(job)
            await deployment.ledger.claim("owner", 1)
            with LeaseKeeper(url, deployment.keys, "owner", LEASE) as keeper:
                keeper.add(job.job_id)
                await wait_until(
                    lambda: deployment.redis.exists(deployment.keys.prefix + "heard"), description="a beat"
                )
                pid = await server_pid(url)
                os.kill(pid, signal.SIGSTOP)
                time.sleep(2 * LEASE)  # noqa: ASYNC251 - how long it was away is what matters here
                os.kill(pid, signal.SIGCONT)
                assert await deployment.ledger.claim("thief", 1) == []
                shown = await deployment.ledger.get(job.job_id)
                assert shown is not None
                assert (shown.status, shown.attempt) == (JobStatus.RUNNING, 1)


async def test_a_submit_wakes_exactly_one_idle_worker(store_url: str, deployment_store: DeploymentStore) -> None:
    async with WakeUps(store_url, deployment_store.keys) as first, WakeUps(store_url, deployment_store.keys) as second:
        assert not await first.wait(0.05)
        await deployment_store.ledger.submit(new_job())
        assert [await first.wait(1.0), await second.wait(0.05)] == [True, False]
        await deployment_store.ledger.claim("owner", 1)
        await deployment_store.ledger.release("owner", lost=True)  # work again
        assert await second.wait(1.0)


async def test_a_keeper_that_keeps_nothing_ends_the_runs_of_a_process_that_died(
    store_url: str, deployment_store: DeploymentStore
) -> None:
    job, redis, keys = new_job(), deployment_store.redis, deployment_store.keys
    await deployment_store.ledger.open(job, "dead")

    async def ended() -> bool:
        shown = await deployment_store.ledger.get(job.job_id)
        return shown is not None and shown.status is JobStatus.FAILED

    with LeaseKeeper(store_url, keys, "alive", LEASE, result_ttl=1000):
        await wait_until(ended, description="the run ends as worker_lost", seconds=3 * LEASE)
    assert 900 < await redis.ttl(keys.job(job.job_id)) <= 1000
    assert len(await deployment_store.log.read(job.job_id)) == 1


async def test_a_token_that_is_given_back_wakes_the_next_waiter(
    store_url: str, deployment_store: DeploymentStore
) -> None:
    async with WakeUps(store_url, deployment_store.keys) as first, WakeUps(store_url, deployment_store.keys) as second:
        await first.give_back()
        assert await deployment_store.redis.ttl(deployment_store.keys.wake) > 0
        assert [await second.wait(1.0), await first.wait(0.05)] == [True, False]
