"""Finding the primary through its sentinels, each time a connection is made, so that clients follow a failover.

A failover takes a few seconds (``down-after-milliseconds`` and an election). Meanwhile there is no primary to be had,
and the store is away like any other. Then:

* A connection that breaks, or that learns from a ``READONLY`` that its server was demoted, is dropped; the next one
  asks the sentinels.
* The first connection to find another primary tells the others of its pool: they leave the old one when next used.
* A new connection asks its server for its role, for a sentinel that was cut off tells of a primary that is none.

What a failover can lose: replication is asynchronous, so jobs, events and ends that the old primary acknowledged and
had not yet sent to the replica that is promoted. An end that is lost leaves the job to be run again after its lease. A
primary that is cut off with some of its clients goes on acknowledging until it is demoted or they notice. So does a
healthy one that ``SENTINEL FAILOVER`` replaces: the sentinels demote it some ten seconds later, and what it accepted in
between is gone. ``min-replicas-to-write`` bounds that.

With ``PIPESERVE_DURABILITY=strict`` a job is accepted when a replica has it, so none is lost with its primary: of the
replicas that sentinels reach they promote the one that has the most. A primary that lives on beside its successor is
another matter. With one replica it accepts nothing more. With several, one may still follow it; set
``min-replicas-to-write`` to the number of replicas where that must not be.
"""

from __future__ import annotations

import contextlib
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from pipeserve.store.address import Address

TIMEOUT = 1.0
"""Seconds to connect to a sentinel, and for its reply. One that is frozen costs them once: the next is asked first."""

_DEMOTED = "the server has become a replica; there is another primary"
_PRIMARY = ("master", "primary")


class Sentinels:
    """Whom to ask for the primary, in which order, and what was said last. Shared by the connections of one pool."""

    def __init__(self, address: Address) -> None:
        self._name = address.master_name
        self._sentinels = list(address.hosts)
        self._options: dict[str, Any] = {
            "username": address.sentinel_username,
            "password": address.sentinel_password,
            "ssl": address.tls,
            "socket_timeout": TIMEOUT,
            "socket_connect_timeout": TIMEOUT,
        }
        if address.tls:
            self._options["ssl_check_hostname"] = True
        self.primary: tuple[str, int] | None = None
        """Where a connection last found it."""

    async def find(self) -> tuple[str, int]:
        """Host and port of the primary. Raises redis-py's ConnectionError."""
        said: list[str] = []
        for host, port in tuple(self._sentinels):
            client = redis.asyncio.Redis(host=host, port=port, **self._options)
            try:
                send: Any = client.execute_command  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
                reply = await send("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
                if (found := self._heard((host, port), reply)) is not None:
                    return found
                said.append(f"{host}:{port} knows no such primary")
            except (RedisError, OSError) as error:
                said.append(f"{host}:{port}: {error or type(error).__name__}")
            finally:
                await client.aclose()
        raise self._unknown(said)

    def find_blocking(self) -> tuple[str, int]:
        """As :meth:`find`, for a thread."""
        said: list[str] = []
        for host, port in tuple(self._sentinels):
            client = redis.Redis(host=host, port=port, **self._options)
            try:
                send: Any = client.execute_command  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
                reply = send("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
                if (found := self._heard((host, port), reply)) is not None:
                    return found
                said.append(f"{host}:{port} knows no such primary")
            except (RedisError, OSError) as error:
                said.append(f"{host}:{port}: {error or type(error).__name__}")
            finally:
                client.close()
        raise self._unknown(said)

    def doubt(self) -> None:
        """What was named can't be reached, or is no primary: that sentinel may have been cut off; ask it last."""
        self._sentinels.append(self._sentinels.pop(0))

    def confirm(self, address: tuple[str, int], role: Any) -> None:
        """Judge a server's reply to ``ROLE`` (None: forbidden). Raises redis-py's ConnectionError: no primary's."""
        if role is not None and role[0].decode() not in _PRIMARY:
            self.doubt()
            raise RedisConnectionError(f"what a sentinel names as primary {self._name!r} is a replica")
        self.primary = address

    def has_moved(self, address: tuple[str, int]) -> bool:
        """Whether another connection has found the primary elsewhere."""
        return self.primary is not None and self.primary != address

    def _heard(self, sentinel: tuple[str, int], reply: Any) -> tuple[str, int] | None:
        if reply is None:
            return None
        self._sentinels.remove(sentinel)
        self._sentinels.insert(0, sentinel)
        return reply[0].decode(), int(reply[1])

    def _unknown(self, said: list[str]) -> RedisConnectionError:
        return RedisConnectionError(f"no sentinel tells where the primary {self._name!r} is: {'; '.join(said)}")


class SentinelConnection(redis.asyncio.Connection):
    """A connection to whatever server is the primary when it is made."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        super().__init__(**options)  # pyright: ignore[reportUnknownMemberType]
        self._sentinels = sentinels

    async def connect(self) -> None:
        """Connect; anew, if another connection has found that the primary moved."""
        if self.is_connected and self._sentinels.has_moved((self.host, self.port)):
            await self.disconnect(nowait=True)
        await super().connect()

    async def _connect(self) -> None:
        self.host, self.port = await self._sentinels.find()
        try:
            await super()._connect()
        except BaseException:  # also when it is given up
            self._sentinels.doubt()
            raise

    async def on_connect(self) -> None:
        """Log in, and make sure of the role."""
        await super().on_connect()
        await self.send_command("ROLE", check_health=False)
        role: Any = None
        with contextlib.suppress(ResponseError):  # forbidden: this user can't be told
            role = await self.read_response()
        self._sentinels.confirm((self.host, self.port), role)

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        """One reply. A demoted server's connection is dropped."""
        try:
            read: Any = super().read_response
            reply: Any = await read(*arguments, **options)
        except ReadOnlyError as error:
            await self.disconnect(nowait=True)
            raise RedisConnectionError(_DEMOTED) from error
        return reply


class SentinelTLSConnection(SentinelConnection, redis.asyncio.SSLConnection):
    """The same with TLS."""


class BlockingSentinelConnection(redis.Connection):
    """As :class:`SentinelConnection`, for a thread."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        super().__init__(**options)  # pyright: ignore[reportUnknownMemberType]
        self._sentinels = sentinels

    def _connect(self) -> Any:
        self.host, self.port = self._sentinels.find_blocking()
        try:
            return super()._connect()
        except BaseException:  # also when it is given up
            self._sentinels.doubt()
            raise

    def on_connect(self) -> None:
        """Log in, and make sure of the role."""
        super().on_connect()
        self.send_command("ROLE", check_health=False)  # pyright: ignore[reportUnknownMemberType]
        role: Any = None
        with contextlib.suppress(ResponseError):  # forbidden: this user can't be told
            role = self.read_response()
        self._sentinels.confirm((self.host, self.port), role)

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        """One reply. A demoted server's connection is dropped."""
        try:
            read: Any = super().read_response
            reply: Any = read(*arguments, **options)
        except ReadOnlyError as error:
            self.disconnect()  # pyright: ignore[reportUnknownMemberType]
            raise RedisConnectionError(_DEMOTED) from error
        return reply


class BlockingSentinelTLSConnection(BlockingSentinelConnection, redis.SSLConnection):
    """The same with TLS."""
