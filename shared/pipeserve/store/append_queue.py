"""Joins what several running jobs add to their logs at the same time: one script for all, one after the other.

A script costs the store and this process several times what one event in it costs, and a job that streams tokens has
one event every few milliseconds. What comes while a script is under way goes into the next, so a process with one job
never waits for others, and one with fifty needs as many scripts as one with five.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from pipeserve.store.scripts.append import Append, append
from pipeserve.store.scripts.prelude import Scope

_EVENTS = 500  # in one script, if of more than one job: it holds up the store for all
_BYTES = 1_048_576  # likewise

_Waiting = tuple[Append, "asyncio.Future[int | None]"]


class AppendQueue:
    """What waits to be appended; on one event loop."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._waiting: deque[_Waiting] = deque()
        self._under_way: list[_Waiting] = []
        self._writing: asyncio.Task[None] | None = None

    async def add(self, one: Append) -> int | None:
        """Append it; the last number, or None where the attempt is stale. Raises StoreUnavailableError.

        Cancelled: it may or may not be written, now or never.
        """
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((one, future))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="append-queue")
        try:
            return await future
        finally:
            if future.cancelled():
                await self._end_if_unwanted()

    async def _end_if_unwanted(self) -> None:
        writing = self._writing
        # Not by end_tasks: a task that swallows its cancellation may be at work for a newcomer by the next one.
        while writing is not None and not (writing.done() or self._wanted()):
            writing.cancel()
            await asyncio.wait([writing], timeout=0.1)

    def _wanted(self) -> bool:
        """Whether anybody still waits for something."""
        return any(not future.done() for _, future in (*self._under_way, *self._waiting))

    async def _write(self) -> None:
        try:
            while self._waiting:
                self._under_way = self._take()
                await self._write_together(self._under_way)
        finally:
            for _, future in self._under_way:  # cancelled, by the end of the loop
                future.cancel()
            self._under_way = []
            # Somebody may have come while this was being ended because nobody waited.
            self._writing = asyncio.create_task(self._write(), name="append-queue") if self._wanted() else None

    def _take(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        events = size = 0
        while self._waiting:
            one, future = self._waiting[0]
            events += len(one.bodies)
            size += sum(map(len, one.bodies))
            if taken and (events > _EVENTS or size > _BYTES):
                break
            self._waiting.popleft()
            if not future.done():
                taken.append((one, future))
        return taken

    async def _write_together(self, taken: Sequence[_Waiting]) -> None:
        if not taken:
            return
        try:
            written = await append(self._scope, [one for one, _ in taken])
        except Exception as error:  # whatever it is, it is for those who wait to judge
            written = [error] * len(taken)
        for (_, future), result in zip(taken, written, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
