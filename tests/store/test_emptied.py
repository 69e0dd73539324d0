"""A store that loses everything under running processes: it is noticed, said, counted, and work goes on."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

import pytest
from tests.contracts.stores import NO_VIEW, body, new_job
from tests.store.test_embedded import ask
from tests.store_fixtures import wait_until

from pipeserve.errors import StaleAttemptError
from pipeserve.runtime.ports import WorkerInfo
from pipeserve.sdk.deployment import Deployment
from pipeserve.store import DeploymentStore, LeaseKeeper, Store

pytestmark = pytest.mark.e2e

LEASE = 1.0


@pytest.fixture
async def deployment(store: Store, deployment_id: str) -> Deployment:
    """Kept in the registry."""
    described = Deployment(
        id=deployment_id,
        name="served",
        target="a:b",
        created_at=datetime(2026, 1, 31, tzinfo=UTC),
        fingerprint="f" * 64,
        pipeline_name="b",
        capture={},
        steps=[],
        input_schema={},
        output_schema={},
    )
    return await store.registry.save(described)


class Process:
    """What one process hears of the store."""

    def __init__(self, url: str, jobs: DeploymentStore, owner: str, deployment: Deployment | None = None) -> None:
        self.emptied = 0
        info = WorkerInfo(owner, host="h", pid=1, started_at="2026-01-31T12:00:00Z", busy=0, concurrency=1)
        self.keeper = LeaseKeeper(
            url, jobs.keys, owner, LEASE, lambda: info, on_emptied=self._on_emptied, deployment=deployment
        )

    def _on_emptied(self) -> None:
        self.emptied += 1


async def epoch(jobs: DeploymentStore) -> str | None:
    stored: bytes | None = await jobs.redis.get(jobs.keys.epoch)
    return None if stored is None else stored.decode().partition(":")[0]


async def listed(jobs: DeploymentStore, count: int) -> bool:
    return len((await jobs.operations.figures()).workers) == count


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_every_process_says_once_that_the_store_was_emptied_and_it_is_counted_once(
    store_url: str, deployment_store: DeploymentStore, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = (Process(store_url, deployment_store, owner) for owner in ("one", "two"))
    with one.keeper, two.keeper:
        await wait_until(lambda: listed(deployment_store, 2), description="both have seen the store as it was")
        first = await epoch(deployment_store)
        assert (await deployment_store.operations.condition())["emptied_at"] is None
        for times in (1, 2):
            await ask(store_url, "FLUSHALL")
            await wait_until(
                lambda times=times: (one.emptied, two.emptied) == (times, times), description="both have noticed"
            )
            assert len(told(caplog)) == 2 * times
        assert await epoch(deployment_store) != first
        assert (await deployment_store.operations.condition())["emptied_at"] is not None
        figures = await deployment_store.operations.figures()
        assert figures.counters["store_emptied"] == 1  # since the last time
        assert figures.emptied_at is not None
    assert "was emptied" in told(caplog)[0]
    assert await deployment_store.redis.ttl(deployment_store.keys.epoch) > 0


async def test_processes_that_start_or_restart_or_wait_out_an_outage_find_nothing_wrong(
    store_url: str, deployment_store: DeploymentStore, caplog: pytest.LogCaptureFixture
) -> None:
    for owner in ("one", "two"):
        process = Process(store_url, deployment_store, owner)
        with process.keeper:
            await wait_until(
                lambda: deployment_store.redis.exists(deployment_store.keys.prefix + "heard"), description="a beat"
            )
            await ask(store_url, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await deployment_store.redis.delete(deployment_store.keys.prefix + "heard")
            await wait_until(
                lambda: deployment_store.redis.exists(deployment_store.keys.prefix + "heard"), description="another"
            )
        assert process.emptied == 0
    assert told(caplog) == []


async def test_one_that_started_after_the_emptying_takes_the_moment_from_those_that_knew(
    store_url: str, deployment_store: DeploymentStore
) -> None:
    old = Process(store_url, deployment_store, "old")
    with old.keeper:
        await wait_until(lambda: epoch(deployment_store), description="the store is marked")
        await ask(store_url, "FLUSHALL")
        # As a process that has just started does, before the old one's next beat.
        await deployment_store.redis.set(deployment_store.keys.epoch, "abc:0", nx=True, ex=60)
        await wait_until(lambda: old.emptied, description="the old one has noticed")
        assert (await deployment_store.operations.condition())["emptied_at"] is not None


async def test_running_jobs_are_lost_followers_end_and_new_jobs_are_accepted_at_once(
    store_url: str, deployment_store: DeploymentStore
) -> None:
    job, ledger = new_job(), deployment_store.ledger
    await ledger.submit(job)
    await ledger.claim("owner", 1)

    async def follow() -> int:
        async with deployment_store.log.follow(job.job_id) as entries:
            return len([entry async for entry in entries])

    loop = asyncio.get_running_loop()
    lost: list[str] = []

    def emptied() -> None:
        loop.call_soon_threadsafe(deployment_store.hub.interrupt)

    with LeaseKeeper(
        store_url,
        deployment_store.keys,
        "owner",
        LEASE,
        on_lost=lost.append,
        on_emptied=emptied,
    ) as keeper:
        keeper.add(job.job_id)
        await wait_until(lambda: epoch(deployment_store), description="the store is marked")
        following = asyncio.create_task(follow())
        await ask(store_url, "FLUSHALL")
        another = new_job()
        assert (await ledger.submit(another)).queue_position == 0
        assert [claim.job_id for claim in await ledger.claim("owner", 5)] == [another.job_id]
        async with asyncio.timeout(15):
            await following
        await wait_until(lambda: lost, description="the owner learns that its job is gone")
    assert lost == [job.job_id]
    with pytest.raises(StaleAttemptError):
        await ledger.append(job.job_id, 1, [body(job.job_id)], NO_VIEW)
    assert await ledger.get(job.job_id) is None


async def test_a_deployment_is_put_back_under_its_id(
    store: Store, store_url: str, deployment_store: DeploymentStore, deployment: Deployment
) -> None:
    process = Process(store_url, deployment_store, "owner", deployment)
    with process.keeper:
        await wait_until(lambda: epoch(deployment_store), description="the store is marked")
        await ask(store_url, "FLUSHALL")
        newer = deployment.model_copy(update={"id": "another", "fingerprint": "e" * 64})
        await store.registry.save(newer)  # the name is its own by now

        async def back() -> Deployment | None:
            return await store.registry.get(deployment.id)

        assert await wait_until(back, description="the deployment is back") == deployment
        assert await store.registry.get(deployment.name) == newer
        assert await store.registry.save(deployment.model_copy(update={"id": "third"})) == deployment


async def test_it_is_put_back_by_one_that_had_not_looked_yet_when_the_store_was_emptied(
    store: Store, store_url: str, deployment_store: DeploymentStore, deployment: Deployment
) -> None:
    """A process that has found its deployment is ready before its first beat, and knows no marker to miss."""
    process = Process(store_url, deployment_store, "owner", deployment)
    await ask(store_url, "FLUSHALL")
    with process.keeper:

        async def back() -> Deployment | None:
            return await store.registry.get(deployment.id)

        assert await wait_until(back, description="the deployment is back") == deployment
    assert process.emptied == 0
