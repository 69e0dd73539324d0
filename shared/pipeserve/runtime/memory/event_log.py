"""Reading the jobs' logs in this process, and hearing of cancels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from pipeserve.events import is_terminal
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

    @asynccontextmanager
    async def follow(self, job_id: str, *, after: int = 0) -> AsyncGenerator[AsyncIterator[LogEntry | LogGap]]:
        """All that follows ``after``, as it happens, without hole or repeat; ends after the terminal event."""
        record = self._state.get(job_id)
        changed = asyncio.Event()
        self._followers.add(changed)
        if record is not None:
            record.followers.add(changed)
        try:
            async with aclosing(self._entries(record, after, changed)) as entries:
                yield entries
        finally:
            self._followers.discard(changed)
            if record is not None:
                record.followers.discard(changed)

    def close(self) -> None:
        """End all followers and listeners, now and from now on: the process shuts down."""
        self._state.closed = True
        for follower in self._followers:
            follower.set()
        for listener in self._state.listeners:
            listener.put_nowait(None)
        self._state.tell_senders()

    async def _entries(
        self, record: Record | None, after: int, changed: asyncio.Event
    ) -> AsyncGenerator[LogEntry | LogGap]:
        position = after
        while record is not None and not self._state.closed:
            changed.clear()
            entries = _page(record, position, 1000)
            for entry in entries:
                yield entry
                position = entry.seq if isinstance(entry, LogEntry) else entry.last
                if isinstance(entry, LogEntry) and is_terminal(entry.body):
                    return
            if record.status.terminal and position >= record.last_seq:
                return
            if not entries:
                await changed.wait()


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
