"""Tells whatever waits on behalf of a caller that this process shuts down.

uvicorn waits for open responses before it runs the lifespan's end, so the lifespan can't be what ends them: an open
stream would hold the process up for ever. :class:`pipeserve_api.server.Server` begins the drain before it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Drain:
    """A flag that can be waited for. Once begun, it stays so."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._calls: set[Callable[[], object]] = set()

    @property
    def begun(self) -> bool:
        """Whether the shutdown has begun."""
        return self._begun.is_set()

    def begin(self) -> None:
        """End streams and long polls, and refuse new runs."""
        self._begun.set()
        for call in tuple(self._calls):
            call()

    async def wait(self) -> None:
        """Return when the shutdown begins."""
        await self._begun.wait()

    def call(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the shutdown begins, unless it has begun. It costs less than a task that waits."""
        self._calls.add(callback)

    def forget(self, callback: Callable[[], object]) -> None:
        """Do not call it."""
        self._calls.discard(callback)
