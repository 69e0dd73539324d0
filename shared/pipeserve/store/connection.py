"""The single point through which this package talks to Redis, so that other modules stay simple.

It knows three things that the rest need not: how to connect (explicit timeouts, since redis-py's defaults change
between versions), what is an outage (:class:`StoreUnavailableError`, whatever redis-py calls it), and how to run a
script whose text the server may have forgotten.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
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
from pipeserve.store.address import Address, masked
from pipeserve.store.durability import PLAN_SECONDS, Guarantee, confirmed, unkept, unreplicated
from pipeserve.store.engine import CONNECT_TIMEOUT, EXPIRES_EXTRA_MS, deserialize, serialize
from pipeserve.store.sentinel import (
    BlockingSentinelConnection,
    BlockingSentinelTLSConnection,
    SentinelConnection,
    Sentinels,
    SentinelTLSConnection,
)

READ_TIMEOUT = 5.0
"""Seconds for one reply. Commands that block on purpose have connections of their own."""
POOL_SIZE = 32
WAITING_POOL_SIZE = 256
"""Durable writes of one process that may wait at once until they are safe."""
POOL_TIMEOUT = 10
"""Seconds to wait for a free connection of the pool."""

_OF_A_WRITER = frozenset({"write", "writelines", "drain", "close", "send_command", "at_eof", "readuntil", "read"})
"""What redis-py asks of the parts of a connection."""
_OUTAGE_WORDS = (
    *("OOM", "MISCONF", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "TRYAGAIN"),
    "UNBLOCKED",  # what a server that is demoted tells those who block on a list
)


class Script:
    """One Lua script. Sent by its digest; by its text where the server does not know it yet."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def connection_options(address: Address, *, read_timeout: float = READ_TIMEOUT) -> dict[str, Any]:
    """redis-py's keyword arguments for a connection to ``address``, without the class of connection."""
    options: dict[str, Any] = {
        "db": address.database,
        "username": address.username,
        "password": address.password,
        "socket_timeout": read_timeout,
        "socket_connect_timeout": CONNECT_TIMEOUT,
    }
    if address.unix_socket is not None:
        return options | {"path": address.unix_socket}
    options["socket_keepalive"] = True
    if address.tls:
        options["ssl_check_hostname"] = True
    if address.master_name is not None:
        return options | {"sentinels": Sentinels(address)}
    host, port = address.hosts[0]
    return options | {"host": host, "port": port}


class FairPool(redis.asyncio.BlockingConnectionPool):
    """First come, first served.

    redis-py's pool lets newcomers pass those who wait: with 64 busy callers of 32 connections one waited five seconds.
    """

    def __init__(self, *, max_connections: int, **options: Any) -> None:
        super().__init__(max_connections=max_connections, **options)  # pyright: ignore[reportUnknownMemberType]
        self._free = asyncio.Semaphore(max_connections)

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        """A connection that is ready. Raises redis-py's ConnectionError where none becomes free in time."""
        try:
            async with asyncio.timeout(self.timeout):
                await self._free.acquire()
        except TimeoutError:
            raise redis.ConnectionError(f"no connection was free within {self.timeout} s") from None
        connection: AbstractConnection = self.get_available_connection()
        try:
            await self.ensure_connection(connection)
        except BaseException:  # whatever it is, the place is free again
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Give it back."""
        try:
            await super().release(connection)
        finally:
            self._free.release()


def connect(url: str, *, queue_name: str, read_timeout: float = READ_TIMEOUT, pool_size: int = POOL_SIZE) -> ArqRedis:
    """A client with a pool of its own; it connects on first use. Close it with ``aclose()``.

    Raises ConfigurationError for an address that can't be read.
    """
    address = Address.parse(url)
    kind: type[AbstractConnection] = redis.asyncio.Connection
    if address.unix_socket is not None:
        kind = redis.asyncio.UnixDomainSocketConnection
    elif address.master_name is not None:
        kind = SentinelTLSConnection if address.tls else SentinelConnection
    elif address.tls:
        kind = redis.asyncio.SSLConnection
    pool = FairPool(
        max_connections=pool_size,
        timeout=POOL_TIMEOUT,
        connection_class=kind,
        **connection_options(address, read_timeout=read_timeout),
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
    address = Address.parse(url)
    kind: type[AbstractBlockingConnection] = redis.Connection
    if address.unix_socket is not None:
        kind = redis.UnixDomainSocketConnection
    elif address.master_name is not None:
        kind = BlockingSentinelTLSConnection if address.tls else BlockingSentinelConnection
    elif address.tls:
        kind = redis.SSLConnection
    pool = redis.ConnectionPool(
        connection_class=kind,  # pyright: ignore[reportArgumentType] - redis-py takes any of them
        max_connections=1,
        **connection_options(address, read_timeout=read_timeout),
    )
    return redis.Redis(connection_pool=pool)


def is_outage(error: BaseException) -> bool:
    """Whether ``error`` says that the store can't serve now, rather than that a request was wrong."""
    if _closed_under_a_write(error):
        return True
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | OutOfMemoryError | ReadOnlyError | OSError):
        return True
    return isinstance(error, ResponseError) and any(word in str(error)[:200] for word in _OUTAGE_WORDS)


def _closed_under_a_write(error: BaseException) -> bool:
    """What comes of writing to a connection that is closed in that moment: uvloop's transport raises RuntimeError, and
    redis-py stumbles over the writer that it has just dropped."""
    if isinstance(error, RuntimeError):
        return "the handler is closed" in str(error)
    return isinstance(error, AttributeError) and error.obj is None and error.name in _OF_A_WRITER


def is_full(error: BaseException) -> bool:
    """Whether ``error`` says that the server has no memory left for a write."""
    return isinstance(error, OutOfMemoryError) or (isinstance(error, ResponseError) and "OOM" in str(error)[:200])


@contextmanager
def outages(url: str) -> Generator[None]:
    """Raise StoreUnavailableError for whatever redis-py raises while the store can't serve."""
    try:
        yield
    except (RedisError, OSError, RuntimeError, AttributeError) as error:
        if not is_outage(error):
            raise
        raise StoreUnavailableError(f"the job store at {masked(url)} {_trouble(error)}", retry_after=1.0) from error


def _trouble(error: BaseException) -> str:
    if is_full(error):
        return "is full (it has reached its maxmemory): it takes nothing new, while running jobs can end"
    if isinstance(error, ResponseError):  # it answers
        return f"can't serve: {error}"
    return f"can't be reached: {error or type(error).__name__}"


class Connection:
    """A store's commands, with its outages named.

    ``strict``: what is run with ``durable=True`` returns once it is safe (see :mod:`pipeserve.store.durability`).
    Waiting for that holds a connection, up to a second each, so these have a pool of their own.
    """

    def __init__(self, url: str, client: ArqRedis, *, strict: bool = False) -> None:
        self.url = url
        self.client = client
        self.strict = strict
        self.behind_sentinels = Address.parse(url).master_name is not None
        self._waiting: ArqRedis | None = None
        self._guarantee: tuple[float, Guarantee] | None = None

    async def call(self, *command: Any, **reading: Any) -> Any:
        """One command, and redis-py's reading of its reply (``reading``: hints for it, such as ``withscores``)."""
        with outages(self.url):
            return await self._execute(*command, **reading)

    async def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Many commands in one round trip, not as a transaction. A reply may be an error; it stands in its place."""
        return await self._pipeline(self.client, commands)

    async def run(self, script: Script, key: str, *arguments: Any, durable: bool = False) -> Any:
        """Run ``script`` with one key. ``durable``: what it writes is a promise, so a strict connection waits for it.

        StoreUnavailableError then means that it may or may not have been kept.
        """
        if durable and self.strict:
            return (await self.run_many(script, key, [arguments], durable=True))[0]
        with outages(self.url):
            try:
                return await self._execute("EVALSHA", script.sha, 1, key, *arguments)
            except NoScriptError:
                return await self._execute("EVAL", script.source, 1, key, *arguments)

    async def run_many(
        self, script: Script, key: str, calls: Sequence[Sequence[Any]], *, durable: bool = False
    ) -> list[Any]:
        """Run ``script`` once per call, all in one round trip (two, where the server does not know it yet)."""
        send = self._safely if durable and self.strict else self.pipeline
        replies = await send([("EVALSHA", script.sha, 1, key, *call) for call in calls])
        unknown = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            again = await send([("EVAL", script.source, 1, key, *calls[at]) for at in unknown])
            for at, reply in zip(unknown, again, strict=True):
                replies[at] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def aclose(self) -> None:
        """Close the pools. Idempotent."""
        await self.client.aclose()
        if self._waiting is not None:
            await self._waiting.aclose()

    async def _safely(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """As :meth:`pipeline`, and the replies come once all that was written is safe."""
        if not commands:
            return []
        guarantee = await self._what_to_wait_for()
        if self._waiting is None:
            self._waiting = connect(self.url, queue_name="arq:queue", pool_size=WAITING_POOL_SIZE)
        replies = await self._pipeline(self._waiting, [*commands, *guarantee.waits])
        written, waited = replies[: len(commands)], replies[len(commands) :]
        if all(isinstance(reply, Exception) for reply in written):
            return written  # nothing to be sure of
        if not confirmed(waited):
            self._guarantee = None  # a replica has gone, or the server is another one by now
            raise StoreUnavailableError(
                f"the job store at {masked(self.url)} took this, but did not confirm in time that it is safe "
                "(PIPESERVE_DURABILITY=strict): it may or may not be kept"
            )
        return written

    async def _what_to_wait_for(self) -> Guarantee:
        now = time.monotonic()
        if self._guarantee is None or now - self._guarantee[0] > PLAN_SECONDS:
            info: dict[str, Any] = await self.call("INFO")
            why = unkept(info) or (unreplicated(info) if self.behind_sentinels else None)
            if why is not None:
                raise StoreUnavailableError(why)
            self._guarantee = now, Guarantee.of(info)
        return self._guarantee[1]

    async def _pipeline(self, client: ArqRedis, commands: Sequence[Sequence[Any]]) -> list[Any]:
        if not commands:
            return []
        with outages(self.url):
            async with client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)  # pyright: ignore[reportUnknownMemberType]
                replies: list[Any] = await pipe.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, Exception) and is_outage(reply):
                    raise reply
            return replies

    async def _execute(self, *command: Any, **reading: Any) -> Any:
        send: Any = self.client.execute_command  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return await send(*command, **reading)


def owner_token(pid: int, random: str) -> str:
    """``host:pid:random``: who holds a job."""
    return f"{socket.gethostname()}:{pid}:{random}"
