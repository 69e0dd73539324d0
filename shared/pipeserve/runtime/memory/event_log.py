"""Reading the jobs' logs in this process, and hearing of cancels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Self

from pipeserve.runtime.follower import WokenFollower
from pipeserve.runtime.memory.record import Record
from pipeserve.runtime.memory.state import MemoryState
from pipeserve.runtime.ports import LogEntry, LogGap


class MemoryEventLog:
    """An ``EventLog`` in this process."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state
        self._followers: set[asyncio.Event] = set()

    async def read(self, job_id: str, *, after: int = 0, limit: int = 1000) -> list[LogEntry | LogGap]:
        """What follows number ``after``, at most ``limit`` entries; a gap stands first. Empty: nothing yet."""
        record = self._state.get(job_id)
        return [] if record is None else _page(record, after, limit)

    def follow(self, job_id: str, *, after: int = 0) -> MemoryFollower:
        """All that follows ``after``, as it happens, without hole or repeat; ends after the terminal event."""
        return MemoryFollower(self._state, self._followers, job_id, after)

    def close(self) -> None:
        """End all followers and listeners, now and from now on: the process shuts down."""
        self._state.closed = True
        for follower in self._followers:
            follower.set()
        for listener in self._state.listeners:
            listener.put_nowait(None)
        self._state.tell_senders()


class MemoryFollower(WokenFollower):
    """Follows one record."""

    __slots__ = ("_followers", "_record", "_state")

    def __init__(self, state: MemoryState, followers: set[asyncio.Event], job_id: str, after: int) -> None:
        super().__init__(after, asyncio.Event())
        self._state = state
        self._followers = followers
        self._record = state.get(job_id)

    async def __aenter__(self) -> Self:
        self._followers.add(self._changed)
        if self._record is not None:
            self._record.followers.add(self._changed)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._followers.discard(self._changed)
        if self._record is not None:
            self._record.followers.discard(self._changed)

    def _read(self, after: int) -> tuple[Sequence[LogEntry | LogGap], bool]:
        record = self._record
        if record is None or self._state.closed:
            return (), True
        entries = _page(record, after, 1000)
        return entries, not entries and record.status.terminal and after >= record.last_seq


def _page(record: Record, after: int, limit: int) -> list[LogEntry | LogGap]:
    entries = [entry for entry in record.events if entry.seq > after][:limit]
    if entries and entries[0].seq > after + 1:
        return [LogGap(after + 1, entries[0].seq - 1, "trimmed"), *entries]
    return [*entries]


class MemoryCancelSignals:
    """``CancelSignals`` in this process."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    @asynccontextmanager
    async def listen(self) -> AsyncGenerator[AsyncIterator[str]]:
        """The ids of jobs whose cancel was just accepted."""
        listener: asyncio.Queue[str | None] = asyncio.Queue()
        self._state.listeners.add(listener)
        try:
            async with aclosing(self._ids(listener)) as ids:
                yield ids
        finally:
            self._state.listeners.discard(listener)

    async def _ids(self, listener: asyncio.Queue[str | None]) -> AsyncGenerator[str]:
        while not self._state.closed:
            job_id = await listener.get()
            if job_id is None:
                return
            yield job_id
