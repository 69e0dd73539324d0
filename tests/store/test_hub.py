"""The hub: one connection for all who follow jobs, and nothing lost whatever happens to it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.contracts.stores import NO_VIEW, body, new_job, numbers, outcome
from tests.store.servers import Server
from tests.store.test_outages import collect, opened, patiently_append
from tests.store_fixtures import wait_until

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.follower import BATCH_BYTES, LEAST_BATCH_BYTES
from pipeserve.runtime.ports import LogEntry, LogGap
from pipeserve.runtime.tasks import end_tasks
from pipeserve.store import DeploymentStore
from pipeserve.store.connection import Connection, connect
from pipeserve.store.event_log import RedisEventLog
from pipeserve.store.hub import Hub

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server(tmp_path, *DURABLE) as running:
        yield running


@pytest.fixture
async def deployment(server: Server) -> AsyncIterator[DeploymentStore]:
    async with opened(server.url) as store:
        yield store


async def running_job(deployment: DeploymentStore) -> str:
    job = new_job()
    await deployment.ledger.submit(job)
    await deployment.ledger.claim("owner", 1)
    return job.job_id


async def channels(server: Server) -> list[str]:
    """What somebody is subscribed to, heartbeats apart."""
    return [name for name in await server.ask("PUBSUB", "CHANNELS") if "events" in name]


@asynccontextmanager
async def impatient_log(server: Server, deployment: DeploymentStore) -> AsyncIterator[RedisEventLog]:
    """A log whose hub and connections notice at once what takes seconds otherwise."""
    connection = Connection(server.url, connect(server.url, queue_name="q", read_timeout=0.5))
    async with Hub(connection, "hb", heartbeat=0.1, silence=0.5) as hub:
        yield RedisEventLog(connection, deployment.keys, hub)
    await connection.aclose()


async def test_a_frozen_server_is_noticed_and_its_followers_go_on(
    server: Server, deployment: DeploymentStore, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = await running_job(deployment)
    async with impatient_log(server, deployment) as log, log.follow(job_id) as entries, asyncio.timeout(30):
        assert numbers([await anext(entries)]) == [1]
        server.send_signal(signal.SIGSTOP)
        try:
            await wait_until(lambda: "lost its connection" in caplog.text, description="the hub notices")
        finally:
            server.send_signal(signal.SIGCONT)
        await patiently_append(deployment, job_id, "after")
        assert numbers([await anext(entries)]) == [2]
        await wait_until(lambda: "has a connection again" in caplog.text, description="the hub says that it is over")


async def test_nothing_is_lost_or_repeated_when_the_server_restarts_among_the_events(
    server: Server, deployment: DeploymentStore
) -> None:
    job_id = await running_job(deployment)
    early = [asyncio.create_task(collect(deployment.log, job_id)) for _ in range(5)]
    for restart in range(3):
        for at in range(20):
            await patiently_append(deployment, job_id, f"{restart} {at}")
        if restart < 2:
            server.kill()
            await server.start()
    late = asyncio.create_task(collect(deployment.log, job_id))
    await deployment.ledger.finish(job_id, 1, [], NO_VIEW, outcome(job_id))
    for entries in await asyncio.gather(*early, late):
        assert numbers(entries) == list(range(1, 63))


async def test_events_of_an_outage_are_read_once_the_hub_is_back(server: Server, deployment: DeploymentStore) -> None:
    job_id = await running_job(deployment)
    async with deployment.log.follow(job_id) as entries, asyncio.timeout(30):
        assert numbers([await anext(entries)]) == [1]
        await server.ask("CLIENT", "KILL", "TYPE", "pubsub")
        await patiently_append(deployment, job_id, "nobody was told")
        assert numbers([await anext(entries)]) == [2]


async def test_a_thousand_followers_take_one_subscription_on_one_connection(
    server: Server, deployment: DeploymentStore
) -> None:
    job_id = await running_job(deployment)
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        followers = [deployment.log.follow(job_id) for _ in range(1000)]
        await asyncio.gather(*(stack.enter_async_context(follower) for follower in followers))
        assert numbers([batch[0] for batch in await asyncio.gather(*(one.batch() for one in followers))]) == [1] * 1000
        clients: str = await server.ask("CLIENT", "LIST")
        subscribed = [client for client in clients.splitlines() if " sub=0 " not in client]
        assert len(subscribed) == 1
        await deployment.ledger.append(job_id, 1, [body(job_id)], NO_VIEW)
        batches = await asyncio.gather(*(one.batch() for one in followers))
        assert {id(batch[0]) for batch in batches} == {id(batches[0][0])}  # read once, and shared


async def test_the_last_follower_who_leaves_ends_the_subscription(server: Server, deployment: DeploymentStore) -> None:
    job_id = await running_job(deployment)
    first, second = deployment.log.follow(job_id), deployment.log.follow(job_id)
    async with first:
        async with second:
            assert await channels(server) == [deployment.keys.events(job_id)]
        assert await channels(server) == [deployment.keys.events(job_id)]
    await wait_until(lambda: gone(server), description="the server is told")
    async with asyncio.timeout(10), deployment.log.follow(job_id) as again:  # and it can be taken up again
        assert numbers([await anext(again)]) == [1]
        await deployment.ledger.append(job_id, 1, [body(job_id)], NO_VIEW)
        assert numbers([await anext(again)]) == [2]


async def test_a_subscription_that_is_given_up_before_it_is_acknowledged_is_released(
    server: Server, deployment: DeploymentStore
) -> None:
    job_id = await running_job(deployment)
    await deployment.operations.figures()  # a connection is there
    server.send_signal(signal.SIGSTOP)
    try:
        for _ in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), deployment.log.follow(job_id):
                    pass
    finally:
        server.send_signal(signal.SIGCONT)
    async with asyncio.timeout(10), deployment.log.follow(job_id) as entries:
        assert numbers([await anext(entries)]) == [1]
    await wait_until(lambda: gone(server), description="no subscription is left")


async def gone(server: Server) -> bool:
    return not await channels(server)


async def test_a_wait_that_is_given_up_loses_nothing(deployment: DeploymentStore) -> None:
    job_id = await running_job(deployment)
    async with asyncio.timeout(20), deployment.log.follow(job_id) as entries:
        seen = [await anext(entries)]
        for _ in range(10):
            waiting = asyncio.ensure_future(anext(entries))
            await asyncio.sleep(0)
            await end_tasks([waiting])
            assert waiting.cancelled()
            await deployment.ledger.append(job_id, 1, [body(job_id)] * 2, NO_VIEW)
            seen += [await anext(entries), await anext(entries)]
    assert numbers(seen) == list(range(1, 22))


async def test_a_follower_that_takes_nothing_keeps_little_and_slows_nobody(
    server: Server, deployment: DeploymentStore
) -> None:
    job_id = await running_job(deployment)
    connection = Connection(server.url, connect(server.url, queue_name="q"))
    async with Hub(connection, "hb", buffer=4) as hub:
        log = RedisEventLog(connection, deployment.keys, hub)
        async with asyncio.timeout(20), log.follow(job_id) as slow, log.follow(job_id) as quick:
            seen = [await anext(slow)]
            told = [await anext(quick)]
            for _ in range(10):
                await deployment.ledger.append(job_id, 1, [body(job_id)] * 3, NO_VIEW)
                told += [await anext(quick) for _ in range(3)]
            subscription = slow._subscription
            assert subscription is not None
            assert len(subscription._messages) <= 4
            seen += [await anext(slow) for _ in range(30)]
    await connection.aclose()
    assert numbers(told) == numbers(seen) == list(range(1, 32))


async def test_closing_ends_all_followers(deployment: DeploymentStore) -> None:
    job_id = await running_job(deployment)
    following = asyncio.create_task(collect(deployment.log, job_id))
    await wait_until(lambda: deployment.hub._channels, description="the job is followed")
    deployment.log.close()
    async with asyncio.timeout(10):
        assert all(isinstance(entry, LogEntry) and not entry.terminal for entry in await following)
        assert await collect(deployment.log, job_id) == []  # whoever comes later, too


async def test_a_server_that_refuses_subscriptions_is_not_asked_without_end(
    server: Server, deployment: DeploymentStore
) -> None:
    job_id = await running_job(deployment)
    await server.ask("ACL", "SETUSER", "deaf", "on", ">deaf", "~*", "+@all", "resetchannels")
    url = f"redis://deaf:deaf@127.0.0.1:{server.port}/0"
    connection = Connection(url, connect(url, queue_name="q"))
    async with Hub(connection, "hb", heartbeat=0.05) as hub:
        refused = asyncio.create_task(collect(RedisEventLog(connection, deployment.keys, hub), job_id))
        before = await accepted(server)
        with pytest.raises(StoreUnavailableError):  # seconds later
            await refused
        assert await accepted(server) - before < 50
        await server.ask("ACL", "SETUSER", "deaf", "allchannels")  # once it may, all is well
        log = RedisEventLog(connection, deployment.keys, hub)
        async with asyncio.timeout(20), log.follow(job_id) as entries:
            assert numbers([await anext(entries)]) == [1]
    await connection.aclose()


async def accepted(server: Server) -> int:
    """Connections that the server has taken so far."""
    return (await server.ask("INFO", "stats"))["total_connections_received"]


async def test_a_heartbeat_that_was_refused_goes_on_once_it_is_allowed(
    server: Server, deployment: DeploymentStore, caplog: pytest.LogCaptureFixture
) -> None:
    await server.ask("ACL", "SETUSER", "mute", "on", ">mute", "~*", "&*", "+@all", "-publish")
    url = f"redis://mute:mute@127.0.0.1:{server.port}/0"
    connection = Connection(url, connect(url, queue_name="q"))
    async with Hub(connection, "hb", heartbeat=0.05, silence=0.5) as hub:
        await wait_until(lambda: "nothing was heard" in caplog.text, description="the hub misses its heartbeat")
        await server.ask("ACL", "SETUSER", "mute", "+publish")
        heard = hub._heard_at

        def beats() -> bool:
            return not hub._tasks[2].done() and hub._heard_at > heard + 1.0

        await wait_until(beats, description="the hub hears itself again")
        pubsub = hub._pubsub
        await wait_until(lambda: hub._heard_at > heard + 2.0, description="and goes on to")
        assert hub._pubsub is pubsub
    await connection.aclose()


async def test_who_takes_nothing_is_kept_nothing_for_once_it_must_read_the_record(
    deployment: DeploymentStore,
) -> None:
    job_id = await running_job(deployment)
    async with asyncio.timeout(20), deployment.log.follow(job_id) as slow, deployment.log.follow(job_id) as quick:
        seen = [await anext(slow)]
        told = [await anext(quick)]
        for _ in range(3):
            await deployment.ledger.append(job_id, 1, [body(job_id)] * 100, NO_VIEW)
            told += [await anext(quick) for _ in range(100)]
        subscription = slow._subscription
        assert subscription is not None
        assert not subscription._messages
        seen += [await anext(slow) for _ in range(300)]
    assert numbers(told) == numbers(seen) == list(range(1, 302))


async def test_a_log_whose_entries_are_gone_is_told_as_a_gap_and_ends(
    server: Server, deployment: DeploymentStore
) -> None:
    job_id = await running_job(deployment)
    await deployment.ledger.append(job_id, 1, [body(job_id)] * 3, NO_VIEW)
    await deployment.ledger.finish(job_id, 1, [], NO_VIEW, outcome(job_id))
    await server.ask("DEL", deployment.keys.events(job_id))  # evicted, say
    assert await collect(deployment.log, job_id) == [LogGap(1, 5, "trimmed")]
    async with asyncio.timeout(10), deployment.log.follow(job_id, after=2) as entries:
        assert [entry async for entry in entries] == [LogGap(3, 5, "trimmed")]
    assert await deployment.log.read(job_id, after=5) == []


async def test_a_job_that_ends_while_its_log_is_read_has_no_gap(deployment: DeploymentStore) -> None:
    for _ in range(30):
        job_id = await running_job(deployment)
        ending = asyncio.create_task(deployment.ledger.finish(job_id, 1, [], NO_VIEW, outcome(job_id)))
        found: list[object] = []
        while not ending.done():
            found += await deployment.log.read(job_id, after=1)
        assert all(isinstance(entry, LogEntry) for entry in found)


@pytest.mark.parametrize(("size", "count"), [(100, 3000), (60_000, 100)])
@pytest.mark.parametrize("jobs", [1, 100])
async def test_who_comes_late_is_given_little_at_a_time(
    deployment: DeploymentStore, size: int, count: int, jobs: int
) -> None:
    job_id = await running_job(deployment)
    for _ in range(10):
        bodies = [body(job_id, message="x" * size)] * (count // 10)
        await deployment.ledger.append(job_id, 1, bodies, NO_VIEW)
    await deployment.ledger.finish(job_id, 1, [], NO_VIEW, outcome(job_id))
    found: list[int] = []
    async with asyncio.timeout(30), deployment.log.follow(job_id) as entries:
        entries.share(jobs)
        while batch := await entries.batch():
            found += numbers(batch)
            taken = sum(len(entry.body) for entry in batch if isinstance(entry, LogEntry))
            most = BATCH_BYTES if jobs == 1 else LEAST_BATCH_BYTES
            # The first batch is a guess, and the largest events are given by fours.
            assert taken <= 2 * most or len(batch) <= 4 or found[0] == numbers(batch)[0]
    assert found == list(range(1, count + 3))
