"""One reader of one job's log, from wherever the log is kept.

It gives what is there in batches: a reader that writes to a socket then writes once for all of it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from pipeserve.runtime.ports import LogEntry, LogGap

BATCH_BYTES = 262_144
"""What a reader of one log is given at once, about."""
LEAST_BATCH_BYTES = 8_192
"""The same for each of many logs: less would be read too often."""


class Follower(ABC):
    """Entries without hole or repeat, as they come. Take batches, or iterate over single entries; not both.

    ``async with`` it. Waiting may be cancelled and begun again: nothing is lost by it.
    """

    __slots__ = ("_at", "_batch", "batch_bytes")

    _batch: Sequence[LogEntry | LogGap]
    _at: int
    batch_bytes: int

    def __init__(self) -> None:
        self.batch_bytes = BATCH_BYTES
        """How much of a record is read at once, about."""
        self._batch = ()
        self._at = 0

    def share(self, count: int) -> None:
        """This is one of ``count`` logs that one reader follows, who may hold a batch of each."""
        self.batch_bytes = max(LEAST_BATCH_BYTES, BATCH_BYTES // count)

    @abstractmethod
    async def batch(self) -> Sequence[LogEntry | LogGap]:
        """What follows the last batch, once there is something. Empty: the log has ended, or was closed."""

    async def __aenter__(self) -> Self:
        return self

    @abstractmethod
    async def __aexit__(self, *_: object) -> None: ...

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LogEntry | LogGap:
        if self._at >= len(self._batch):
            self._batch = await self.batch()
            self._at = 0
            if not self._batch:
                raise StopAsyncIteration
        self._at += 1
        return self._batch[self._at - 1]


class WokenFollower(Follower):
    """Reads a log in this process's memory, which sets ``changed`` whenever there may be more."""

    __slots__ = ("_changed", "_ended", "_position")

    def __init__(self, after: int, changed: asyncio.Event) -> None:
        super().__init__()
        self._position = after
        self._changed = changed
        self._ended = False

    @abstractmethod
    def _read(self, after: int) -> tuple[Sequence[LogEntry | LogGap], bool]:
        """What follows ``after``, and whether nothing can follow that."""

    async def batch(self) -> Sequence[LogEntry | LogGap]:
        while not self._ended:
            self._changed.clear()
            entries, over = self._read(self._position)
            if over:
                self._ended = True
            if entries:
                last = entries[-1]
                if isinstance(last, LogEntry):
                    self._position = last.seq
                    self._ended = self._ended or last.terminal
                else:
                    self._position = last.last
                return entries
            if not over:
                await self._changed.wait()
        return ()
