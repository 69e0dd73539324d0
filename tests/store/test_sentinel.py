"""A store behind sentinels: its address, and what becomes of jobs when its primary goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contracts.stores import NO_VIEW, body, new_job, numbers, outcome
from tests.store.servers import PASSWORD, PRIMARY_NAME, SENTINEL_PASSWORD, replicated
from tests.store_fixtures import wait_until

from pipeserve.errors import ConfigurationError, StaleAttemptError, StoreUnavailableError
from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import Claim, LogEntry, LogGap
from pipeserve.runtime.tasks import end_tasks
from pipeserve.settings import StoreSettings
from pipeserve.store import DeploymentStore, LeaseKeeper, WakeUps, open_store
from pipeserve.store.address import Address, masked
from pipeserve.store.engine import arq_settings

LEASE = 4.0


def test_the_address_of_sentinels_is_read_with_all_its_parts() -> None:
    address = Address.parse(
        "rediss+sentinel://me:p%40ss@a:1,b,[::1]:3/my%20primary?db=2&sentinel_username=s&sentinel_password=x%26y"
    )
    assert address == Address(
        hosts=(("a", 1), ("b", 26379), ("::1", 3)),
        database=2,
        username="me",
        password="p@ss",
        tls=True,
        master_name="my primary",
        sentinel_username="s",
        sentinel_password="x&y",
    )
    settings = arq_settings("redis+sentinel://a:1,b/primary")
    assert (settings.sentinel, settings.host, settings.sentinel_master) == (True, [("a", 1), ("b", 26379)], "primary")


@pytest.mark.parametrize(
    "wrong",
    [
        "redis+sentinel://:hunter2@a:1",  # of what?
        "redis+sentinel://:hunter2@a:1/",
        "redis+sentinel://:hunter2@a:1/primary/0",
        "redis+sentinel://:hunter2@/primary",
        "redis+sentinel://:hunter2@a:1,,b/primary",
        "redis+sentinel://:hunter2@a:x/primary",
        "redis+sentinel://:hunter2@a/primary?db=x",
        "redis+sentinel://:hunter2@a/primary?password=hunter2",
        "sentinel://:hunter2@a/primary",
        "redis://:hunter2@a,b/0",
        "redis://:hunter2/word@a/0",
        "redis://:hunter2@[a/0",
    ],
)
def test_a_wrong_address_is_refused_without_showing_its_password(wrong: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Address.parse(wrong)
    assert "PIPESERVE_REDIS_URL" in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert "hunter2" not in masked(wrong)


def test_all_secrets_of_an_address_are_masked() -> None:
    url = "redis+sentinel://me:hunter2@a:1,b:2/primary?db=1&sentinel_username=s&sentinel_password=hunter3"
    assert masked(url) == "redis+sentinel://me:***@a:1,b:2/primary?db=1&sentinel_username=s&sentinel_password=***"
    assert masked("redis+sentinel://a/primary") == "redis+sentinel://a/primary"
    assert masked("unix:///tmp/a@b.sock?db=2") == "unix:///tmp/a@b.sock?db=2"
    assert masked("unix://:hunter2@/tmp/a@b.sock") == "unix://:***@/tmp/a@b.sock"


@contextlib.asynccontextmanager
async def opened(url: str, durability: str = "standard") -> AsyncIterator[DeploymentStore]:
    settings = StoreSettings.from_environment(redis_url=url, lease_seconds=LEASE, durability=durability)
    async with open_store(settings) as store, store.deployment("d") as deployment:
        yield deployment


async def insist_on_submitting(deployment: DeploymentStore) -> str:
    """As a caller with an id of its own does: the same again until it is accepted."""
    job = new_job()
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                await deployment.ledger.submit(job)
                return job.job_id
            await asyncio.sleep(0.05)


async def work(deployment: DeploymentStore, url: str) -> None:
    """Claim and end jobs for ever, whatever the store does."""
    async with WakeUps(url, deployment.keys) as wake_ups:
        while True:
            try:
                for claim in await deployment.ledger.claim("worker", 5):
                    await insist_on_ending(deployment, claim)
                await wake_ups.wait(0.5)
            except StoreUnavailableError:
                await asyncio.sleep(0.05)


async def insist_on_ending(deployment: DeploymentStore, claim: Claim) -> None:
    """The same end again until it is written, or another attempt has the job: nobody renews these leases."""
    end = outcome(claim.job_id, claim.attempt)
    with contextlib.suppress(StaleAttemptError):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                await deployment.ledger.finish(claim.job_id, claim.attempt, [], NO_VIEW, end)
                return
            await asyncio.sleep(0.05)


async def follow(deployment: DeploymentStore, job_id: str) -> list[LogEntry | LogGap]:
    async with deployment.log.follow(job_id) as entries:
        return [entry async for entry in entries]


def assert_no_secret_in(text: str) -> None:
    assert [secret for secret in (PASSWORD, "p%40ss", SENTINEL_PASSWORD, "s%26cret") if secret in text] == []


@pytest.mark.e2e
@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_jobs_and_workers_and_followers_follow_a_failover(
    short_dir: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with replicated(short_dir) as servers, opened(servers.url) as deployment:
        held = new_job()
        await deployment.ledger.submit(held)
        await deployment.ledger.claim("owner", 1)
        following = asyncio.create_task(follow(deployment, held.job_id))
        working = asyncio.create_task(work(deployment, servers.url))
        lost: list[str] = []
        with LeaseKeeper(servers.url, deployment.keys, "owner", LEASE, on_lost=lost.append) as keeper:
            keeper.add(held.job_id)
            job_ids = [await insist_on_submitting(deployment) for _ in range(10)]
            await wait_until(servers.caught_up, description="the replica has all that was acknowledged")
            if how == "killed":
                servers.primary.kill()
            else:
                servers.primary.send_signal(signal.SIGSTOP)
            job_ids += [await insist_on_submitting(deployment) for _ in range(10)]

            async def is_promoted() -> bool:  # the first sentinel may hear of it later than the one that was asked
                return await servers.primary_port() == servers.replicas[0].port

            await wait_until(is_promoted, description="every sentinel names the replica")

            async def all_done() -> bool:
                found = [await deployment.ledger.get(job_id) for job_id in job_ids]
                return all(job is not None and job.status is JobStatus.COMPLETED for job in found)

            await wait_until(all_done, description="every acknowledged job has ended", seconds=30)
            await end_tasks([working])
            assert lost == []
            assert await deployment.ledger.append(held.job_id, 1, [body(held.job_id)], NO_VIEW) == 2
            assert await deployment.ledger.finish(held.job_id, 1, [], NO_VIEW, outcome(held.job_id))
            keeper.discard(held.job_id)
        async with asyncio.timeout(30):
            assert numbers(await following) == [1, 2, 3]
        assert_no_secret_in(caplog.text)


@pytest.mark.e2e
async def test_without_a_sentinel_that_knows_it_the_store_is_unavailable_and_says_why(short_dir: Path) -> None:
    async with replicated(short_dir, sentinels=1) as servers:
        async with opened(servers.url.replace("the%20primary", "another")) as deployment:
            with pytest.raises(
                StoreUnavailableError, match="no sentinel tells where the primary 'another' is"
            ) as raised:
                await deployment.operations.figures()
            assert "127.0.0.1:1:" in str(raised.value)
            assert "knows no such primary" in str(raised.value)
            assert_no_secret_in(f"{raised.value} {deployment.operations.describe()}")
        async with opened(servers.url.replace("s%26cret", "wrong")) as deployment:
            with pytest.raises(StoreUnavailableError):
                await deployment.operations.figures()


@pytest.mark.e2e
async def test_a_demoted_primary_that_stays_connected_is_left_at_the_first_refusal(short_dir: Path) -> None:
    async with replicated(short_dir, sentinels=1) as servers, opened(servers.url) as deployment:
        job = new_job()
        await deployment.ledger.submit(job)
        # What sentinels do, but without closing the clients' connections.
        [replica] = servers.replicas
        await replica.ask("REPLICAOF", "NO", "ONE")
        await servers.primary.ask("REPLICAOF", "127.0.0.1", replica.port)
        with pytest.raises(StoreUnavailableError, match="has become a replica"):
            await deployment.ledger.cancel(job.job_id)
        with pytest.raises(StoreUnavailableError, match="what a sentinel names as primary 'the primary' is a replica"):
            await deployment.ledger.cancel(job.job_id)
        await servers.primary.ask("REPLICAOF", "NO", "ONE")
        assert await deployment.ledger.cancel(job.job_id) is not None


@pytest.mark.e2e
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("how", "replicas"), [("killed", 2), ("replaced", 1)])
async def test_what_a_strict_service_accepted_outlives_a_failover(short_dir: Path, how: str, replicas: int) -> None:
    async with (
        replicated(short_dir, replicas=replicas, sentinels=1) as servers,
        opened(servers.url, "strict") as deployment,
    ):
        accepted = [await insist_on_submitting(deployment) for _ in range(5)]
        if how == "killed":
            servers.primary.kill()
        else:  # it goes on answering until the sentinels demote it
            await servers.sentinels[0].ask("SENTINEL", "FAILOVER", PRIMARY_NAME)

        async def over() -> bool:
            accepted.append(await insist_on_submitting(deployment))
            if how == "replaced" and (await servers.primary.ask("ROLE"))[0] == "master":
                return False
            return await servers.primary_port() != servers.primary.port

        await wait_until(over, description="another server is the primary", seconds=60)
        accepted += [await insist_on_submitting(deployment) for _ in range(5)]
        missing = [job_id for job_id in accepted if await deployment.ledger.get(job_id) is None]
        assert missing == []


@pytest.mark.e2e
async def test_behind_sentinels_a_strict_service_refuses_jobs_while_there_is_no_replica(short_dir: Path) -> None:
    async with replicated(short_dir, sentinels=1) as servers, opened(servers.url, "strict") as deployment:
        await deployment.ledger.submit(new_job())
        assert (await deployment.operations.condition())["warnings"] == []
        servers.replicas[0].kill()

        async def warned() -> bool:
            return "no replica is connected" in str((await deployment.operations.condition())["warnings"])

        await wait_until(warned, description="the replica has gone")
        assert await deployment.operations.check() == []
        with pytest.raises(StoreUnavailableError):
            await deployment.ledger.submit(new_job())
        await servers.replicas[0].start()
        await insist_on_submitting(deployment)
