"""How late this process's event loop comes to what is due: what a step that holds it does to all other callers."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Self

from pipeserve.runtime.latency import bucket_of


class LoopLag:
    """Looks twice a second while it is entered, on the loop.

    ``interval``: seconds between two looks.
    """

    def __init__(self, *, interval: float = 0.5) -> None:
        self._interval = interval
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.buckets: Counter[int] = Counter()
        """How late it was, in the buckets of :mod:`pipeserve.runtime.latency`."""

    def __enter__(self) -> Self:
        self._again(asyncio.get_running_loop())
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + self._interval
        self._timer = loop.call_at(self._due, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self.buckets[bucket_of(loop.time() - self._due)] += 1
        self._again(loop)
