"""One pub/sub connection per process, shared by all who follow jobs.

A connection per follower costs the server 40 times as much and 300 sockets for 300 readers of one job. Here each
channel is subscribed once, however many listen.

Pub/sub only wakes: it loses what is published during a reconnect, says nothing about a frozen server, and cuts slow
readers off. So each subscription has a mark, ``must_read``, that says "the record knows more than you were told". It
is set at the start, after every reconnect, and when a subscription's buffer overflowed (then nothing is kept until
the record is being read: memory stays bounded, and nothing is lost that the record has). A hub publishes to a channel
of its own every few seconds; when it does not hear itself, the connection is dead and is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.tasks import end_tasks
from pipeserve.store.connection import Connection, is_outage
from pipeserve.store.subscription import Channel, Subscription

logger = logging.getLogger(__name__)

T = TypeVar("T")

HEARTBEAT = 5.0
"""Seconds between messages to itself."""
SILENCE = 12.0
"""Seconds without hearing itself after which a hub takes a new connection. It looks every second."""
BUFFER = 256
"""Messages that wait for one subscriber."""
SUBSCRIBE_TIMEOUT = 5.0
"""Seconds to wait for the server's acknowledgement."""
_LONGEST_PAUSE = 2.0
_REMIND = 60.0
"""Seconds between warnings while the store is away."""


class _OutageLog:
    """Tells the log of an outage when it begins, now and then while it lasts, and when it is over."""

    def __init__(self) -> None:
        self._told_at: float | None = None

    def lost(self, error: Exception) -> None:
        """One more try has failed."""
        now = time.monotonic()
        if self._told_at is None:
            logger.warning("the event hub lost its connection and takes a new one: %s", error)
        elif now - self._told_at >= _REMIND:
            logger.warning("the event hub still has no connection: %s", error)
        else:
            return
        self._told_at = now

    def heard(self) -> None:
        """The server answers."""
        if self._told_at is not None:
            self._told_at = None
            logger.warning("the event hub has a connection again")


class Hub:
    """The subscriptions of one process for one deployment. ``async with`` runs it; leaving ends every subscription."""

    def __init__(
        self,
        connection: Connection,
        heartbeat_channel: str,
        *,
        heartbeat: float = HEARTBEAT,
        silence: float = SILENCE,
        buffer: int = BUFFER,
    ) -> None:
        self._connection = connection
        self._own_channel = f"{heartbeat_channel}{uuid.uuid4().hex[:12]}"
        self._heartbeat = heartbeat
        self._silence = silence
        self._buffer = buffer
        self._channels: dict[str, Channel] = {}
        self._unanswered: dict[str, int] = {}
        self._pubsub: PubSub | None = None
        self._to_tell: dict[str, None] = {}
        """Channels of which the server must learn that they are wanted, or not any more."""
        self._news = asyncio.Event()
        self._using = asyncio.Lock()
        """Of the connection: one that writes at a time, and nobody closes it meanwhile."""
        self._broken: Exception | None = None
        """Why the connection is of no use any more, found by someone other than its reader."""
        self._heard_at = 0.0
        self._outage = _OutageLog()
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._listen(), name="hub-listen"),
            asyncio.create_task(self._tell(), name="hub-tell"),
            asyncio.create_task(self._beat(), name="hub-heartbeat"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await end_tasks(self._tasks)

    def close(self) -> None:
        """End every subscription at once; new ones end at once too. Idempotent."""
        self._closed = True
        for channel in self._channels.values():
            for subscription in channel.subscriptions:
                subscription.close()

    def interrupt(self) -> None:
        """The record has changed behind everybody's back: all read it anew."""
        for channel in self._channels.values():
            channel.interrupted()

    @asynccontextmanager
    async def subscribe(self, name: str) -> AsyncGenerator[Subscription[bytes]]:
        """Listen on channel ``name``; entered once the server has acknowledged. Raises StoreUnavailableError."""
        subscription: Subscription[bytes] = await self.join(name, None)
        try:
            yield subscription
        finally:
            self.leave(subscription)

    async def join(self, name: str, read: Callable[[bytes], T] | None) -> Subscription[T]:
        """As :meth:`subscribe`, until :meth:`leave`. ``read`` makes of a message what all subscribers get of it; they
        must all give the same."""
        subscription: Subscription[T] = Subscription(name, self._buffer)
        if self._closed:
            subscription.close()
            return subscription
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = Channel(read)
            self._changed(name)
        channel.subscriptions.add(subscription)
        try:
            if not channel.acknowledged.is_set():
                await self._acknowledged(channel, name)
        except BaseException:  # whatever it is, nobody listens
            self.leave(subscription)
            raise
        return subscription

    def leave(self, subscription: Subscription[Any]) -> None:
        """Listen no more. The last one who leaves a channel ends its subscription at the server."""
        name = subscription.channel
        channel = self._channels.get(name)
        if channel is None or subscription not in channel.subscriptions:
            return
        channel.subscriptions.discard(subscription)
        if not channel.subscriptions:
            del self._channels[name]
            self._changed(name)

    async def _acknowledged(self, channel: Channel, name: str) -> None:
        try:
            async with asyncio.timeout(SUBSCRIBE_TIMEOUT):
                await channel.acknowledged.wait()
        except TimeoutError:
            raise StoreUnavailableError(
                f"the job store did not acknowledge a subscription to {name} within {SUBSCRIBE_TIMEOUT:g} s"
            ) from None

    def _changed(self, name: str) -> None:
        self._to_tell[name] = None
        self._news.set()

    async def _tell(self) -> None:
        """Tell the server which channels are wanted, many at once where many have come or gone.

        A task of the hub's own does it: a follower that is cancelled in a write would take the connection with it.
        """
        while True:
            await self._news.wait()
            async with self._using:
                self._news.clear()
                names, self._to_tell = self._to_tell, {}
                pubsub = self._pubsub
                if pubsub is None:  # a new one begins with everything in _channels
                    continue
                wanted = [name for name in names if name in self._channels]
                unwanted = [name for name in names if name not in self._channels]
                for name in wanted:
                    self._unanswered[name] = self._unanswered.get(name, 0) + 1
                try:
                    if wanted:
                        await pubsub.subscribe(*wanted)  # pyright: ignore[reportUnknownMemberType]
                    if unwanted:
                        await pubsub.unsubscribe(*unwanted)  # pyright: ignore[reportUnknownMemberType]
                except Exception as error:  # whatever it is, a new connection begins with everything in _channels
                    self._broken = error

    async def _listen(self) -> None:
        pause = 0.0
        while True:
            try:
                async with self._connected() as pubsub:
                    await self._dispatch(pubsub)
            except Exception as error:  # whatever it is, followers wait for the next connection
                if self._own_channel not in self._unanswered:
                    pause = 0.0  # it was of use; one that refuses to subscribe would be asked without end
                if not (isinstance(error, RedisError) or is_outage(error)):
                    logger.exception("the event hub's connection broke")
                if not self._closed:
                    self._outage.lost(error)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2 or 0.05)

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[PubSub]:
        pubsub: PubSub = self._connection.client.pubsub()  # pyright: ignore[reportUnknownMemberType]
        try:
            async with self._using:
                names = [self._own_channel, *self._channels]
                self._unanswered = dict.fromkeys(names, 1)
                await pubsub.subscribe(*names)  # pyright: ignore[reportUnknownMemberType]
                self._pubsub = pubsub
            self._broken = None
            self._heard_at = time.monotonic()
            yield pubsub
        finally:
            self._pubsub = None
            for channel in self._channels.values():
                channel.acknowledged.clear()
            async with self._using:  # one that is being used would connect once more, and nobody would close that
                await pubsub.aclose()

    async def _dispatch(self, pubsub: PubSub) -> None:
        while True:
            message: dict[str, Any] | None = await pubsub.get_message(timeout=1.0)  # pyright: ignore[reportUnknownVariableType]
            if self._broken is not None:
                raise OSError("a subscription could not be sent") from self._broken
            if time.monotonic() - self._heard_at > self._silence:
                raise OSError(f"nothing was heard for {self._silence:g} s")
            if message is None:
                continue
            self._outage.heard()  # not when connecting: a frozen server's socket takes a connection too
            name: str = message["channel"].decode()
            if message["type"] == "subscribe":
                self._answered(name)
            elif message["type"] == "message":
                if name == self._own_channel:
                    self._heard_at = time.monotonic()
                elif (channel := self._channels.get(name)) is not None:
                    channel.offer(message["data"])

    def _answered(self, name: str) -> None:
        """The server acknowledged one SUBSCRIBE. It counts once all that were sent are answered: the last one rules."""
        self._unanswered[name] = self._unanswered.get(name, 1) - 1
        if self._unanswered[name] > 0:
            return
        del self._unanswered[name]
        channel = self._channels.get(name)
        if channel is not None:
            channel.acknowledged.set()
            channel.interrupted()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat)
            if self._pubsub is not None:
                # Whatever it is (a server may refuse it for a while), the silence that follows is what tells of it.
                with contextlib.suppress(Exception):
                    await self._connection.call("PUBLISH", self._own_channel, b"")
