"""Who listens to one channel of the hub, and what waits for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

BUFFER_BYTES = 1_048_576
"""What waits for one subscriber, at most; it is shared by all who have not taken it yet."""


class Subscription(Generic[T]):
    """One listener on one channel."""

    __slots__ = ("_bytes", "_changed", "_limit", "_messages", "_waiter", "channel", "closed", "must_read")

    def __init__(self, channel: str, limit: int) -> None:
        self.channel = channel
        self.closed = False
        """The hub is closed; nothing follows."""
        self.must_read = True
        """The record must be read before the next message; clear it *before* reading."""
        self._messages: list[T] = []
        self._bytes = 0
        self._limit = limit
        self._changed = False
        # An asyncio.Event and a deque would take 1.5 KiB of each subscriber.
        self._waiter: asyncio.Future[None] | None = None

    def offer(self, message: T, size: int) -> None:
        """A message of ``size`` bytes has come. While the record is still to be read, none is kept: it has them all."""
        self._bytes += size
        if len(self._messages) >= self._limit or self._bytes > BUFFER_BYTES:
            self.must_read = True
        if self.must_read:
            self._messages.clear()
            self._bytes = 0
        else:
            self._messages.append(message)
        self._wake()

    def interrupted(self) -> None:
        """Messages may have been lost."""
        self.must_read = True
        self._wake()

    def close(self) -> None:
        """Nothing follows."""
        self.closed = True
        self._wake()

    def take(self) -> list[T]:
        """What has come since the last call."""
        messages, self._messages = self._messages, []
        self._bytes = 0
        return messages

    async def wait(self, seconds: float | None = None) -> None:
        """Until something has changed, or ``seconds`` have passed. One at a time may wait."""
        if not self._changed:
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            try:
                if seconds is None:
                    await waiter
                else:
                    await asyncio.wait([waiter], timeout=seconds)
            finally:
                self._waiter = None
        self._changed = False

    def _wake(self) -> None:
        self._changed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Channel:
    """One channel of the server, and all who listen to it."""

    __slots__ = ("acknowledged", "read", "subscriptions")

    def __init__(self, read: Callable[[bytes], Any] | None) -> None:
        self.read = read
        self.subscriptions: set[Subscription[Any]] = set()
        self.acknowledged = asyncio.Event()

    def offer(self, data: bytes) -> None:
        """A message has come. It is read once, and all subscribers get the same."""
        message = data if self.read is None else self.read(data)
        for subscription in self.subscriptions:
            subscription.offer(message, len(data))

    def interrupted(self) -> None:
        """Messages may have been lost."""
        for subscription in self.subscriptions:
            subscription.interrupted()
