"""A store that is away, comes back, loses its connections or is full."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.contracts.stores import NO_VIEW, body, new_job, numbers, outcome, picture
from tests.store.test_embedded import ask, server_pid
from tests.store_fixtures import wait_until

from pipeserve.errors import StaleAttemptError, StoreUnavailableError
from pipeserve.events import event_type_of
from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import Admission, CacheGauges, LogEntry, LogGap, Renewal, RunView, Webhook, WebhookProgress
from pipeserve.runtime.tasks import end_tasks
from pipeserve.settings import StoreSettings
from pipeserve.store import DeploymentStore, open_store
from pipeserve.store.connection import Connection, connect
from pipeserve.store.embedded import EmbeddedStore, start_embedded
from pipeserve.store.event_log import RedisEventLog
from pipeserve.store.hub import Hub


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[DeploymentStore]:
    settings = StoreSettings.from_environment(redis_url=url)
    async with open_store(settings) as store, store.deployment("d") as deployment:
        yield deployment


async def patiently_append(deployment: DeploymentStore, job_id: str, message: str) -> None:
    """As a recorder does: the same again until the store has it."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                await deployment.ledger.append(job_id, 1, [body(job_id, message=message)], NO_VIEW)
                return
            await asyncio.sleep(0.02)


async def collect(log: RedisEventLog, job_id: str) -> list[LogEntry | LogGap]:
    async with asyncio.timeout(30), log.follow(job_id) as entries:
        return [entry async for entry in entries]


async def test_an_external_store_that_is_down_is_store_unavailable_until_it_is_back(short_dir: Path) -> None:
    async with opened(EmbeddedStore(short_dir).url) as deployment:
        for _ in range(2):
            with pytest.raises(StoreUnavailableError) as raised:
                await deployment.ledger.submit(new_job())
            assert raised.value.retry_after is not None
        with pytest.raises(StoreUnavailableError):
            await deployment.operations.figures()
        async with start_embedded(short_dir):
            assert (await deployment.ledger.submit(new_job())).queue_position == 0
            async with asyncio.timeout(10), deployment.signals.listen():  # the hub is there too
                pass
        with pytest.raises(StoreUnavailableError):
            await deployment.ledger.get(new_job().job_id)


async def test_a_follower_misses_nothing_when_the_store_is_killed_and_comes_back(short_dir: Path) -> None:
    async with start_embedded(short_dir) as url, opened(url) as deployment:
        job = new_job()
        await deployment.ledger.submit(job)
        await deployment.ledger.claim("owner", 1)
        followers = [asyncio.create_task(collect(deployment.log, job.job_id)) for _ in range(3)]
        for round_ in range(3):
            for n in range(20):
                await patiently_append(deployment, job.job_id, f"{round_} {n}")
            if round_ < 2:
                os.kill(await server_pid(url), signal.SIGKILL)
        await deployment.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
        for entries in await asyncio.gather(*followers):
            assert numbers(entries) == list(range(1, 63))


async def test_a_frozen_connection_is_noticed_and_replaced(short_dir: Path) -> None:
    async with start_embedded(short_dir) as url, opened(url) as deployment:
        connection = Connection(url, connect(url, queue_name="q", read_timeout=0.5))
        job = new_job()
        await deployment.ledger.submit(job)
        await deployment.ledger.claim("owner", 1)
        async with Hub(connection, "hb", heartbeat=0.1, silence=0.5) as hub:
            log = RedisEventLog(connection, deployment.keys, hub)
            async with asyncio.timeout(30), log.follow(job.job_id) as entries:
                await anext(entries)
                first = hub._pubsub
                pid = await server_pid(url)
                os.kill(pid, signal.SIGSTOP)
                try:
                    await wait_until(lambda: hub._pubsub is not first, description="the hub gave its connection up")
                finally:
                    os.kill(pid, signal.SIGCONT)
                await patiently_append(deployment, job.job_id, "after")
                assert numbers([await anext(entries)]) == [2]
        await connection.aclose()


async def test_a_look_into_the_shared_cache_can_be_given_up_while_the_store_is_frozen(short_dir: Path) -> None:
    async with start_embedded(short_dir) as url, opened(url) as deployment:
        for key in ("a", "b"):
            await deployment.cache.set(key, key.encode(), 60.0)
        pid = await server_pid(url)
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(40):  # more than the pool has connections
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await deployment.cache.get("a")
        finally:
            os.kill(pid, signal.SIGCONT)
        for _ in range(40):  # no late reply is taken for the answer to another question
            found = await deployment.cache.get("b")
            assert found is not None
            assert found[0] == b"b"


async def test_a_full_buffer_costs_a_slow_follower_nothing(store_url: str, deployment_store: DeploymentStore) -> None:
    connection = Connection(store_url, connect(store_url, queue_name="q"))
    job = new_job()
    await deployment_store.ledger.submit(job)
    await deployment_store.ledger.claim("owner", 1)
    async with Hub(connection, "hb", buffer=4) as hub:
        log = RedisEventLog(connection, deployment_store.keys, hub)
        async with asyncio.timeout(10), log.follow(job.job_id) as entries:
            seen = [await anext(entries)]
            for _ in range(10):
                await deployment_store.ledger.append(job.job_id, 1, [body(job.job_id)] * 3, NO_VIEW)
            await deployment_store.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
            seen += [entry async for entry in entries]
    await connection.aclose()
    assert numbers(seen) == list(range(1, 33))


class CuttingProxy:
    """Passes everything on to the store, and cuts the connection instead of passing on a reply when told to."""

    def __init__(self, upstream: str, path: Path) -> None:
        self.url = f"unix://{path}"
        self.cut_next = False
        self._upstream = upstream
        self._path = path
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_unix_server(self._serve, str(self._path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(self._upstream)
        requests = asyncio.create_task(self._pass_on(reader, upstream_writer))
        try:
            while data := await upstream_reader.read(65536):
                if self.cut_next and data != b"+OK\r\n":
                    self.cut_next = False
                    break
                writer.write(data)
                await writer.drain()
        finally:
            requests.cancel()
            writer.close()
            upstream_writer.close()
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@pytest.fixture
async def proxied(store_url: str, short_dir: Path) -> AsyncIterator[tuple[CuttingProxy, DeploymentStore]]:
    """A store behind a proxy; its hub does not run, so every reply is one to the test."""
    upstream = store_url.removeprefix("unix://").partition("?")[0]
    async with (
        CuttingProxy(upstream, short_dir / "proxy.sock") as proxy,
        open_store(StoreSettings.from_environment(redis_url=proxy.url)) as store,
    ):
        deployment = store.deployment("d")
        yield proxy, deployment
        await deployment.aclose()


async def test_what_was_written_although_its_reply_was_lost_is_not_written_twice(
    proxied: tuple[CuttingProxy, DeploymentStore],
) -> None:
    proxy, deployment = proxied
    job, ledger = new_job(), deployment.ledger

    proxy.cut_next = True
    with pytest.raises(StoreUnavailableError):
        await ledger.submit(job)
    assert await ledger.submit(job) == Admission(job.job_id, replayed=False, queue_position=0)
    [claim] = await ledger.claim("owner", 5)
    assert claim.attempt == 1

    bodies = [body(job.job_id, message=f"{n}") for n in range(5)]
    proxy.cut_next = True
    with pytest.raises(StoreUnavailableError):
        await ledger.append(job.job_id, 1, bodies[:2], NO_VIEW)
    proxy.cut_next = True
    with pytest.raises(StoreUnavailableError):  # more came meanwhile; the doubtful ones are settled first
        await ledger.append(job.job_id, 1, bodies[:3], NO_VIEW)
    assert await ledger.append(job.job_id, 1, bodies[:4], RunView(progress=b'{"percent":50.0}')) == 5

    proxy.cut_next = True
    with pytest.raises(StoreUnavailableError):
        await ledger.finish(job.job_id, 1, bodies[4:], NO_VIEW, outcome(job.job_id))
    assert await ledger.finish(job.job_id, 1, bodies[4:], NO_VIEW, outcome(job.job_id))

    entries = await deployment.log.read(job.job_id)
    assert [entry.body for entry in entries if isinstance(entry, LogEntry)][1:-1] == bodies
    ended = await ledger.get(job.job_id)
    assert ended is not None
    assert (ended.status, ended.progress.percent, ended.last_seq) == (JobStatus.COMPLETED, 50.0, 7)


async def test_a_finish_settles_an_append_whose_reply_was_lost(proxied: tuple[CuttingProxy, DeploymentStore]) -> None:
    proxy, deployment = proxied
    job, ledger = new_job(), deployment.ledger
    await ledger.submit(job)
    await ledger.claim("owner", 1)
    bodies = [body(job.job_id, message=f"{n}") for n in range(3)]
    proxy.cut_next = True
    with pytest.raises(StoreUnavailableError):
        await ledger.append(job.job_id, 1, bodies[:2], NO_VIEW)
    assert await ledger.finish(job.job_id, 1, bodies, NO_VIEW, outcome(job.job_id))
    entries = await deployment.log.read(job.job_id)
    assert [entry.body for entry in entries if isinstance(entry, LogEntry)][1:-1] == bodies


async def test_who_waits_for_a_connection_is_not_passed_by_those_who_come_later(store_url: str) -> None:
    connection = Connection(store_url, connect(store_url, queue_name="q", pool_size=1))
    calls = 0
    waiting = asyncio.Event()

    async def busy() -> None:
        nonlocal calls
        while True:
            await connection.call("PING")
            calls += 1
            waiting.set()

    tasks = [asyncio.create_task(busy()) for _ in range(3)]
    await waiting.wait()
    before = calls
    for _ in range(20):
        await connection.call("PING")
    served = calls - before
    await end_tasks(tasks)
    await connection.call("PING")  # those who were cancelled hold no connection
    await connection.aclose()
    assert served <= 20 * 3 + 3


async def test_a_full_store_refuses_new_jobs_and_lets_running_ones_end(short_dir: Path) -> None:
    async with start_embedded(short_dir) as url, opened(url) as deployment:
        jobs = [new_job(max_attempts=1) for _ in range(4)]
        for job in jobs:
            await deployment.ledger.submit(job)
        await deployment.ledger.claim("owner", 2)
        await ask(url, "CONFIG SET", "maxmemory", 1)
        with pytest.raises(StoreUnavailableError, match="is full") as raised:
            await deployment.ledger.submit(new_job())
        assert (raised.value.status, raised.value.code, raised.value.retryable) == (503, "store_unavailable", True)
        with pytest.raises(StoreUnavailableError, match="is full"):
            await deployment.ledger.submit_many([new_job(), new_job()])
        with pytest.raises(StoreUnavailableError, match="is full"):
            await deployment.ledger.open(new_job(), "owner")
        with pytest.raises(StoreUnavailableError):
            await deployment.ledger.append(jobs[0].job_id, 1, [body(jobs[0].job_id)], NO_VIEW)
        with pytest.raises(StoreUnavailableError):
            await deployment.attachments.add(jobs[0].job_id, 1, [picture()])
        with pytest.raises(StoreUnavailableError):
            await deployment.checkpoints.save(jobs[0].job_id, 1, "step", b"record")
        with pytest.raises(StoreUnavailableError):
            await deployment.cache.set("digest", b"value", 60.0)
        with pytest.raises(StoreUnavailableError):
            await deployment.operations.tell_cache("owner", CacheGauges(1, 1))
        assert await deployment.cache.get("digest") is None
        assert await deployment.ledger.finish(jobs[0].job_id, 1, [], NO_VIEW, outcome(jobs[0].job_id))
        assert await deployment.ledger.cancel(jobs[2].job_id) is not None
        assert await deployment.ledger.release("owner", lost=True) == 1
        assert [claim.job_id for claim in await deployment.ledger.claim("other", 5)] == [jobs[3].job_id]
        await ask(url, "CONFIG SET", "maxmemory", 0)
        statuses = [(await deployment.ledger.get(job.job_id)) for job in jobs]
        assert [job.status.value for job in statuses if job] == ["completed", "failed", "canceled", "running"]
        entries = await deployment.log.read(jobs[1].job_id)
        assert [event_type_of(entry.body) for entry in entries if isinstance(entry, LogEntry)] == [
            "job_queued",
            "attempt_lost",
            "pipeline_failed",
        ]
        with pytest.raises(StaleAttemptError):
            await deployment.ledger.finish(jobs[1].job_id, 1, [], NO_VIEW, outcome(jobs[1].job_id))


async def test_on_a_full_store_running_jobs_end_with_their_results_and_webhooks(short_dir: Path) -> None:
    async with start_embedded(short_dir) as url, opened(url) as deployment:
        ledger = deployment.ledger
        webhook = Webhook("https://example.org/", ("pipeline_completed",))
        running, stolen, canceled, waiting = jobs = [new_job(webhook=webhook) for _ in range(4)]
        for job in jobs:
            await ledger.submit(job)
        assert len(await ledger.claim("owner", 3)) == 3
        await deployment.redis.zadd(deployment.keys.running, {stolen.job_id: 1})  # as if its lease had run out
        await ask(url, "CONFIG SET", "maxmemory", 1)

        # Jobs change hands, and what the former owner writes is refused and counted.
        assert await ledger.renew("owner", [running.job_id, canceled.job_id]) == Renewal()
        [again, last] = await ledger.claim("thief", 5)
        assert [(again.job_id, again.attempt), (last.job_id, last.attempt)] == [(stolen.job_id, 2), (waiting.job_id, 1)]
        with pytest.raises(StaleAttemptError):
            await ledger.append(stolen.job_id, 1, [body(stolen.job_id)], NO_VIEW)
        with pytest.raises(StaleAttemptError):
            await ledger.finish(stolen.job_id, 1, [], NO_VIEW, outcome(stolen.job_id))
        shown = await ledger.get(stolen.job_id)
        assert shown is not None
        assert shown.fenced_writes == 2
        assert (await deployment.operations.figures()).counters["fenced_writes"] == 2

        # Ends are written, with all that belongs to them.
        bodies = [body(running.job_id, message="the last words")]
        view = RunView(progress=b'{"percent":100.0}')
        assert await ledger.finish(running.job_id, 1, bodies, view, outcome(running.job_id))
        assert await ledger.finish(stolen.job_id, 2, [], NO_VIEW, outcome(stolen.job_id, 2))
        assert await ledger.cancel(canceled.job_id, reason="enough") is not None
        assert not await ledger.finish(canceled.job_id, 1, [], NO_VIEW, outcome(canceled.job_id))
        gave_up = outcome(canceled.job_id, status=JobStatus.CANCELED)
        assert await ledger.finish(canceled.job_id, 1, [], NO_VIEW, gave_up)
        shown = await ledger.get(running.job_id)
        assert shown is not None
        assert (shown.status, shown.result, shown.progress.percent) == (JobStatus.COMPLETED, {"output": 42}, 100.0)
        assert numbers(await deployment.log.read(running.job_id)) == [1, 2, 3]

        # What is to be sent is sent.
        due, _ = await deployment.webhooks.due(10, hold=60.0)
        assert {found.job_id for found in due} == {running.job_id, stolen.job_id, canceled.job_id}
        await deployment.webhooks.settle(running.job_id, WebhookProgress(after=3, status="done"))
        assert await deployment.webhooks.due(10, hold=60.0) != due

        # Jobs are given back, and accepted again once there is room.
        assert await ledger.release("thief", lost=False) == 1
        with pytest.raises(StoreUnavailableError, match="is full"):
            await ledger.submit(new_job())
        await ask(url, "CONFIG SET", "maxmemory", 0)
        await ledger.submit(new_job())
        assert len(await ledger.claim("owner", 5)) == 2


async def test_the_hub_tells_the_log_of_an_outage_once_and_of_its_end(
    short_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "pipeserve.store.hub"]

    url = EmbeddedStore(short_dir).url
    connection = Connection(url, connect(url, queue_name="q"))
    tries = 0
    pubsub = connection.client.pubsub

    def counted(**options: Any) -> Any:
        nonlocal tries
        tries += 1
        return pubsub(**options)

    connection.client.pubsub = counted
    async with Hub(connection, "hb"):
        await wait_until(lambda: tries > 3, description="it has tried again and again")
        assert len(told()) == 1
        async with start_embedded(short_dir):
            await wait_until(lambda: len(told()) == 2, description="it is back")
            assert "again" in told()[1]
    await connection.aclose()
