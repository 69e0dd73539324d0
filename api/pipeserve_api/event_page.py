"""A page of a job's log, as a long poll answers with it.

What a filter leaves out is passed over: a poll that waits goes on waiting, and the next begins behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from pipeserve.events import event_type_of, is_terminal, number
from pipeserve.runtime.ports import LogEntry, LogGap
from pipeserve_api.lookup import JobLog

LIMIT = 1000
"""Entries that are read at once."""


class EventPage:
    """Grows until there is something to tell. Reading may be given up at any point: what was added stays."""

    def __init__(self, log: JobLog, *, after: int, types: frozenset[str] | None) -> None:
        self.position = after
        """The number of the last entry that was read or passed over."""
        self.done = False
        """Whether the terminal event was among what was read, or :meth:`end` was called."""
        self._log = log
        self._types = types
        self._events: list[bytes] = []
        self._gaps: list[dict[str, Any]] = []

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell yet."""
        return not (self._events or self._gaps or self.done)

    async def read(self) -> None:
        """Take what the log has, until there is something to tell. Raises StoreUnavailableError."""
        while self.empty and (entries := await self._log.read(after=self.position, limit=LIMIT)):
            self._add(entries)

    async def follow(self) -> None:
        """Wait until there is something to tell, and take it; or until the log ends. Raises StoreUnavailableError."""
        async with self._log.follow(after=self.position) as entries:
            async for entry in entries:
                self._add([entry])
                if not self.empty:
                    break
        if not self.done:  # what came with it
            self._add(await self._log.read(after=self.position, limit=LIMIT))

    def end(self) -> None:
        """Nothing can follow."""
        self.done = True

    def json(self) -> bytes:
        """The body of the answer."""
        page: dict[str, Any] = {
            "events": [orjson.Fragment(event) for event in self._events],
            "next": self.position,
            "done": self.done,
        }
        if self._gaps:
            page["gaps"] = self._gaps
        return orjson.dumps(page)

    def _add(self, entries: Iterable[LogEntry | LogGap]) -> None:
        for entry in entries:
            if isinstance(entry, LogGap):
                self._gaps.append({"from": entry.first, "to": entry.last, "reason": entry.reason})
                self.position = entry.last
                continue
            if self._types is None or event_type_of(entry.body) in self._types:
                self._events.append(number(entry.seq, entry.body))
            self.position = entry.seq
            self.done = is_terminal(entry.body)
