"""PIPESERVE_DURABILITY=strict: a job is accepted once it is on disk, and on a replica where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contracts.stores import new_job
from tests.store.servers import Server
from tests.store_fixtures import wait_until

from pipeserve.errors import StoreUnavailableError
from pipeserve.settings import StoreSettings
from pipeserve.store import DeploymentStore, open_store
from pipeserve.store.durability import Guarantee, unkept

pytestmark = pytest.mark.e2e

FILE = ("--appendonly", "yes", "--save", "")
NO_FILE = ("--appendonly", "no", "--save", "")


@contextlib.asynccontextmanager
async def opened(server: Server, durability: str = "strict") -> AsyncIterator[DeploymentStore]:
    settings = StoreSettings.from_environment(redis_url=server.url, durability=durability)
    async with open_store(settings) as store, store.deployment("d") as deployment:
        yield deployment


@contextlib.asynccontextmanager
async def with_replica(directory: Path, *options: str) -> AsyncIterator[tuple[Server, Server]]:
    """A primary and its replica."""
    primary = Server(directory, *options, "--repl-diskless-sync-delay", "0")
    replica = Server(directory, *NO_FILE, "--replicaof", f"127.0.0.1 {primary.port}")

    async def linked() -> bool:
        return (await replica.ask("INFO", "replication"))["master_link_status"] == "up"

    async with primary, replica:
        await wait_until(linked, description="the replica follows")
        yield primary, replica


async def waits(server: Server) -> list[str]:
    """Which waiting commands the server was sent."""
    stats = await server.ask("INFO", "commandstats")
    return sorted(name for name in ("wait", "waitaof") if f"cmdstat_{name}" in stats)


async def test_a_job_is_accepted_once_it_is_on_disk(short_dir: Path) -> None:
    async with Server(short_dir, *FILE, "--appendfsync", "everysec") as server, opened(server) as deployment:
        jobs = [new_job() for _ in range(5)]
        await asyncio.gather(*(deployment.ledger.submit(job) for job in jobs))
        await deployment.ledger.submit_many([new_job(), new_job()])
        await deployment.ledger.open(new_job(), "owner")
        assert await waits(server) == ["waitaof"]
        assert await deployment.operations.check() == []


async def test_what_is_not_on_disk_is_not_accepted_and_the_same_id_makes_no_second_job(short_dir: Path) -> None:
    async with Server(short_dir, *FILE, "--appendfsync", "no") as server, opened(server) as deployment:
        [finding] = await deployment.operations.check()
        assert "strict can't be kept: appendfsync is no" in finding
        job = new_job()
        with pytest.raises(StoreUnavailableError, match="it may or may not be kept") as raised:
            await deployment.ledger.submit(job)
        assert "p%40ss" not in str(raised.value)
        await server.ask("CONFIG", "SET", "appendfsync", "always")
        assert (await deployment.ledger.submit(job)).job_id == job.job_id
        assert [claim.job_id for claim in await deployment.ledger.claim("owner", 5)] == [job.job_id]
        await deployment.ledger.release("owner", lost=False)


async def test_a_standard_service_does_not_wait_and_warns(short_dir: Path) -> None:
    async with Server(short_dir, *FILE, "--appendfsync", "no") as server, opened(server, "standard") as deployment:
        await deployment.ledger.submit(new_job())
        assert await waits(server) == []
        assert await deployment.operations.check() == []
        assert "appendfsync is no" in str((await deployment.operations.condition())["warnings"])


async def test_with_a_replica_a_job_is_accepted_once_the_replica_has_it(short_dir: Path) -> None:
    async with with_replica(short_dir, *FILE, "--appendfsync", "always") as servers, opened(servers[0]) as deployment:
        primary, replica = servers
        job = new_job()
        await deployment.ledger.submit(job)
        assert await waits(primary) == ["wait", "waitaof"]
        assert await replica.ask("HGET", deployment.keys.job(job.job_id), "status") == "pending"
        replica.send_signal(signal.SIGSTOP)
        doubtful = new_job()
        with pytest.raises(StoreUnavailableError, match="it may or may not be kept"):
            await deployment.ledger.submit(doubtful)
        replica.send_signal(signal.SIGCONT)
        assert (await deployment.ledger.submit(doubtful)).job_id == doubtful.job_id
        assert await replica.ask("HGET", deployment.keys.job(doubtful.job_id), "status") == "pending"


async def test_a_replica_makes_up_for_a_file_that_is_not_there(short_dir: Path) -> None:
    async with with_replica(short_dir, *NO_FILE) as (primary, replica), opened(primary) as deployment:
        await deployment.ledger.submit(new_job())
        assert await waits(primary) == ["wait"]
        assert not any("strict" in finding for finding in await deployment.operations.check())
        replica.kill()

        async def noticed() -> bool:
            return any("strict" in finding for finding in await deployment.operations.check())

        await wait_until(noticed, description="the replica has gone")
        with pytest.raises(StoreUnavailableError):
            await deployment.ledger.submit(new_job())


async def test_where_nothing_can_be_confirmed_jobs_are_refused_before_they_are_written(short_dir: Path) -> None:
    async with Server(short_dir, *NO_FILE) as server, opened(server) as deployment:
        job = new_job()
        with pytest.raises(StoreUnavailableError, match="it has no append-only file, and no replica is connected"):
            await deployment.ledger.submit(job)
        assert await deployment.ledger.get(job.job_id) is None
        assert any("strict can't be kept" in finding for finding in await deployment.operations.check())


def test_an_old_server_can_confirm_by_a_replica_only() -> None:
    alone = {"redis_version": "6.2.14", "aof_enabled": 1, "connected_slaves": 0}
    assert Guarantee.of(alone) == Guarantee(disk=False, replica=False)
    assert "older than 7.2" in str(unkept(alone))
    assert Guarantee.of(alone | {"connected_slaves": 1}) == Guarantee(disk=False, replica=True)
    assert unkept(alone | {"connected_slaves": 1}) is None
    assert Guarantee.of(alone | {"redis_version": "7.2.0"}) == Guarantee(disk=True, replica=False)


async def test_waiting_for_the_disk_holds_up_nobody_else(short_dir: Path) -> None:
    async with Server(short_dir, *FILE, "--appendfsync", "no") as server, opened(server) as deployment:
        await deployment.ledger.get("none")
        waiting = [asyncio.create_task(deployment.ledger.submit(new_job())) for _ in range(100)]

        async def written() -> bool:
            return await deployment.redis.zcard(deployment.keys.queue) == 100

        await wait_until(written, description="all of them wait for the disk")
        assert not any(task.done() for task in waiting)
        assert len(await deployment.ledger.claim("owner", 3)) == 3
        await server.ask("CONFIG", "SET", "appendfsync", "always")
        await deployment.ledger.release("owner", lost=False)  # a write: the file is on disk up to here
        assert len(await asyncio.gather(*waiting)) == 100
