"""A job's log for one reader, who may look at the next entry while it still holds one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from pipeserve.events import event_type_of, is_terminal
from pipeserve.runtime.ports import LogEntry, LogGap
from pipeserve.runtime.tasks import end_tasks


class Ahead:
    """The entries that are wanted, one after the other; None after the last. :meth:`close` it before the log."""

    def __init__(self, entries: AsyncIterator[LogEntry | LogGap], types: frozenset[str] | None) -> None:
        """``types``: only events of these types; None: all."""
        self._entries = entries
        self._types = types
        self._looking: asyncio.Task[LogEntry | LogGap | None] | None = None
        self._ended = False

    async def take(self) -> LogEntry | LogGap | None:
        """The next entry."""
        if self._looking is None:
            return await self._pull()
        entry = await self._looking
        self._looking = None
        return entry

    def look(self) -> asyncio.Task[LogEntry | LogGap | None]:
        """The next entry, once it is there; it is still to be taken."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._pull())
        return self._looking

    async def close(self) -> None:
        """Look no further."""
        if self._looking is not None:
            await end_tasks([self._looking])

    async def _pull(self) -> LogEntry | LogGap | None:
        while not self._ended:
            entry = await anext(self._entries, None)
            if entry is None or isinstance(entry, LogGap):
                return entry
            self._ended = is_terminal(entry.body)
            if self._types is None or event_type_of(entry.body) in self._types:
                return entry
        return None
