"""Reads the whole service's figures for whoever asks. It waits for a store that hangs, but not as long as a scraper."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.cache.teller import CacheTeller
from pipeserve.runtime.ports import Operations, ServiceFigures
from pipeserve.runtime.tasks import end_tasks

PATIENCE = 2.0
"""Seconds. A store takes about a millisecond to answer."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the store knows of all processes, and how long it took to say so, in seconds."""

    figures: ServiceFigures | None
    """None: the store is away."""
    seconds: float


class FiguresReader:
    """One reading at a time, however many ask: a store that hangs costs one connection. Enter it first."""

    def __init__(self, operations: Operations, teller: CacheTeller | None, *, patience: float = PATIENCE) -> None:
        self._operations = operations
        self._teller = teller
        self._patience = patience
        self._reading: asyncio.Task[ServiceFigures | None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading is not None:
            await end_tasks([self._reading])

    async def read(self) -> Reading:
        """The figures as they are now, or as the reading that is under way finds them."""
        started = time.perf_counter()
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="figures")
        reading = self._reading
        # Not cancelled when it takes too long: who asks next waits for it again.
        await asyncio.wait([reading], timeout=self._patience)
        return Reading(reading.result() if reading.done() else None, time.perf_counter() - started)

    async def _read(self) -> ServiceFigures | None:
        with suppress(StoreUnavailableError):
            if self._teller is not None:
                await self._teller.tell(anew=True)
            return await self._operations.figures()
        return None
