"""The contract suite's stores: the memory twin, Valkey, and Redis in a container."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.contracts.stores import DEPLOYMENT, Ports

from pipeserve.runtime.memory import MemoryStore
from pipeserve.settings import StoreSettings
from pipeserve.store import open_store

LOG_MAX = 300
QUEUE_MAX = 50
RESULT_TTL = 86_400


class MovableClock:
    """Real time, plus what a test adds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture(params=["memory", "valkey", pytest.param("redis", marks=pytest.mark.docker)])
async def ports(request: pytest.FixtureRequest) -> AsyncIterator[Ports]:
    """The ports of one fresh deployment."""
    if request.param == "memory":
        yield _memory()
        return
    settings = StoreSettings.from_environment(
        redis_url=request.getfixturevalue("store_url" if request.param == "valkey" else "redis_url"),
        event_log_max=LOG_MAX,
        max_queue_size=QUEUE_MAX,
        lease_seconds=30.0,
        result_ttl=RESULT_TTL,
    )
    async with open_store(settings) as store, store.deployment(DEPLOYMENT) as opened:
        redis: Any = opened.redis  # redis-py types its asyncio replies as if they were not

        async def expire_leases() -> None:
            # As if the leases had begun that much earlier; the server's clock can't be moved.
            for job_id in await redis.zrange(opened.keys.running, 0, -1):
                await redis.zadd(opened.keys.running, {job_id: 1}, xx=True)

        async def pass_time(seconds: float) -> None:
            keys = opened.keys
            zsets = [keys.prefix + name for name in ("queue", "scheduled", "expiry", "running", "webhooks")]
            zsets += [lane async for lane in redis.scan_iter(match=keys.prefix + "lane:*")]
            for zset in zsets:
                for member in await redis.zrange(zset, 0, -1):
                    await redis.zincrby(zset, -seconds * 1000, member)
            live = [*await redis.zrange(keys.queue, 0, -1), *await redis.zrange(keys.running, 0, -1)]
            for job_id in live:
                for moment in ("created_at", "run_at", "expires_at"):
                    if await redis.hexists(keys.job(job_id.decode()), moment):
                        await redis.hincrby(keys.job(job_id.decode()), moment, round(-seconds * 1e6))
            if seconds >= 30:
                await redis.delete(keys.reconciler)
            if seconds >= 80:
                async for step in redis.scan_iter(match=keys.prefix + "pace:*"):
                    await redis.delete(step)

        async def age_caches() -> None:
            for owner, told in (await redis.hgetall(opened.keys.caches)).items():
                moment, rest = told.split(b":", 1)
                await redis.hset(opened.keys.caches, owner, b"%d:%b" % (int(moment) - 31_000, rest))

        async def expire_records() -> None:
            async for key in redis.scan_iter():
                if 0 <= await redis.pttl(key) <= RESULT_TTL * 1000:
                    await redis.delete(key)

        async def everything() -> bytes:
            found: list[bytes] = []
            async for key in redis.scan_iter():
                found += [key, await redis.dump(key) or b""]
                kind = await redis.type(key)
                if kind == b"hash":
                    found += [part for pair in (await redis.hgetall(key)).items() for part in pair]
                elif kind == b"string":
                    found.append(await redis.get(key) or b"")
                elif kind == b"stream":
                    found += [entry[b"d"] for _, entry in await redis.xrange(key)]
            return b"\n".join(found)

        yield Ports(
            ledger=opened.ledger,
            log=opened.log,
            signals=opened.signals,
            operations=opened.operations,
            attachments=opened.attachments,
            checkpoints=opened.checkpoints,
            cache=opened.cache,
            webhooks=opened.webhooks,
            limits=opened.limits,
            registry=store.registry,
            expire_leases=expire_leases,
            pass_time=pass_time,
            age_caches=age_caches,
            expire_records=expire_records,
            everything=everything,
            close=opened.log.close,
            event_log_max=LOG_MAX,
            max_queue_size=QUEUE_MAX,
        )


def _memory() -> Ports:
    clock = MovableClock()
    store = MemoryStore(
        clock=clock, lease_seconds=30.0, event_log_max=LOG_MAX, max_queue_size=QUEUE_MAX, result_ttl=RESULT_TTL
    )

    async def pass_time(seconds: float) -> None:
        clock.ahead += seconds

    async def half_a_minute() -> None:
        clock.ahead += 31.0

    async def expire_records() -> None:
        clock.ahead += RESULT_TTL + 1

    async def everything() -> bytes:
        state = store.ledger._state
        return repr((state.all(), state.caches, store.cache._entries)).encode()

    return Ports(
        ledger=store.ledger,
        log=store.log,
        signals=store.signals,
        operations=store.operations,
        attachments=store.attachments,
        checkpoints=store.checkpoints,
        cache=store.cache,
        webhooks=store.webhooks,
        limits=store.limits,
        registry=store.registry,
        expire_leases=half_a_minute,
        pass_time=pass_time,
        age_caches=half_a_minute,
        expire_records=expire_records,
        everything=everything,
        close=store.log.close,
        event_log_max=LOG_MAX,
        max_queue_size=QUEUE_MAX,
    )
