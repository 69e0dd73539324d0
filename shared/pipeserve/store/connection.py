"""The single point through which this package talks to Redis, so that other modules stay simple.

It knows three things that the rest need not: how to connect (explicit timeouts, since redis-py's defaults change
between versions), what is an outage (:class:`StoreUnavailableError`, whatever redis-py calls it), and how to run a
script whose text the server may have forgotten.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
from arq.connections import ArqRedis
from redis.asyncio.connection import AbstractConnection
from redis.connection import AbstractConnection as AbstractBlockingConnection
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from pipeserve.errors import StoreUnavailableError
from pipeserve.store.engine import (
    CONNECT_TIMEOUT,
    EXPIRES_EXTRA_MS,
    arq_settings,
    deserialize,
    masked,
    serialize,
)

READ_TIMEOUT = 5.0
"""Seconds for one reply. Commands that block on purpose have connections of their own."""
POOL_SIZE = 32
POOL_TIMEOUT = 10
"""Seconds to wait for a free connection of the pool."""

_OUTAGE_WORDS = ("OOM", "MISCONF", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "TRYAGAIN")


class Script:
    """One Lua script. Sent by its digest; by its text where the server does not know it yet."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def connection_options(url: str, *, read_timeout: float = READ_TIMEOUT) -> dict[str, Any]:
    """redis-py's keyword arguments for a connection to ``url``, without the class of connection."""
    settings = arq_settings(url)
    options: dict[str, Any] = {
        "db": settings.database,
        "username": settings.username,
        "password": settings.password,
        "socket_timeout": read_timeout,
        "socket_connect_timeout": CONNECT_TIMEOUT,
    }
    if settings.unix_socket_path is not None:
        return options | {"path": settings.unix_socket_path}
    options |= {"host": settings.host, "port": settings.port, "socket_keepalive": True}
    if settings.ssl:
        options |= {"ssl_check_hostname": settings.ssl_check_hostname}
    return options


def connect(url: str, *, queue_name: str, read_timeout: float = READ_TIMEOUT, pool_size: int = POOL_SIZE) -> ArqRedis:
    """A client with a pool of its own; it connects on first use. Close it with ``aclose()``."""
    settings = arq_settings(url)
    kind: type[AbstractConnection] = redis.asyncio.Connection
    if settings.unix_socket_path is not None:
        kind = redis.asyncio.UnixDomainSocketConnection
    elif settings.ssl:
        kind = redis.asyncio.SSLConnection
    pool = redis.asyncio.BlockingConnectionPool(
        max_connections=pool_size,
        timeout=POOL_TIMEOUT,
        connection_class=kind,
        **connection_options(url, read_timeout=read_timeout),
    )
    client = ArqRedis(
        pool_or_conn=pool,
        job_serializer=serialize,
        job_deserializer=deserialize,
        default_queue_name=queue_name,
        expires_extra_ms=EXPIRES_EXTRA_MS,
    )
    client.auto_close_connection_pool = True
    return client


def connect_blocking(url: str, *, read_timeout: float) -> redis.Redis:
    """A synchronous client with one connection, for a thread of its own."""
    settings = arq_settings(url)
    kind: type[AbstractBlockingConnection] = redis.Connection
    if settings.unix_socket_path is not None:
        kind = redis.UnixDomainSocketConnection
    elif settings.ssl:
        kind = redis.SSLConnection
    pool = redis.ConnectionPool(
        connection_class=kind,  # pyright: ignore[reportArgumentType] - redis-py takes any of them
        max_connections=1,
        **connection_options(url, read_timeout=read_timeout),
    )
    return redis.Redis(connection_pool=pool)


def is_outage(error: BaseException) -> bool:
    """Whether ``error`` says that the store can't serve now, rather than that a request was wrong."""
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | OutOfMemoryError | ReadOnlyError | OSError):
        return True
    return isinstance(error, ResponseError) and any(word in str(error)[:200] for word in _OUTAGE_WORDS)


@contextmanager
def outages(url: str) -> Generator[None]:
    """Raise StoreUnavailableError for whatever redis-py raises while the store can't serve."""
    try:
        yield
    except (RedisError, OSError) as error:
        if not is_outage(error):
            raise
        raise StoreUnavailableError(
            f"the job store at {masked(url)} can't be reached: {error or type(error).__name__}", retry_after=1.0
        ) from error


class Connection:
    """A store's commands, with its outages named."""

    def __init__(self, url: str, client: ArqRedis) -> None:
        self.url = url
        self.client = client

    async def call(self, *command: Any, **reading: Any) -> Any:
        """One command, and redis-py's reading of its reply (``reading``: hints for it, such as ``withscores``)."""
        with outages(self.url):
            return await self._execute(*command, **reading)

    async def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Many commands in one round trip, not as a transaction. A reply may be an error; it stands in its place."""
        if not commands:
            return []
        with outages(self.url):
            async with self.client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)  # pyright: ignore[reportUnknownMemberType]
                replies: list[Any] = await pipe.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, Exception) and is_outage(reply):
                    raise reply
            return replies

    async def run(self, script: Script, key: str, *arguments: Any) -> Any:
        """Run ``script`` with one key."""
        with outages(self.url):
            try:
                return await self._execute("EVALSHA", script.sha, 1, key, *arguments)
            except NoScriptError:
                return await self._execute("EVAL", script.source, 1, key, *arguments)

    async def run_many(self, script: Script, key: str, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """Run ``script`` once per call, all in one round trip (two, where the server does not know it yet)."""
        replies = await self.pipeline([("EVALSHA", script.sha, 1, key, *call) for call in calls])
        unknown = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            again = await self.pipeline([("EVAL", script.source, 1, key, *calls[at]) for at in unknown])
            for at, reply in zip(unknown, again, strict=True):
                replies[at] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def _execute(self, *command: Any, **reading: Any) -> Any:
        send: Any = self.client.execute_command  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return await send(*command, **reading)

    async def aclose(self) -> None:
        """Close the pool. Idempotent."""
        await self.client.aclose()


def owner_token(pid: int, random: str) -> str:
    """``host:pid:random``: who holds a job."""
    return f"{socket.gethostname()}:{pid}:{random}"
