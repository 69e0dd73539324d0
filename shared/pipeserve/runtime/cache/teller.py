"""Tells the store how full this process's step cache is, so that any API process can answer for the whole service."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import NoReturn

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.cache.step_cache import StepCache
from pipeserve.runtime.ports import CacheGauges, Operations
from pipeserve.runtime.tasks import end_tasks

_AGAIN = 10.0  # seconds after which it is told once more: the store forgets it after 30


class CacheTeller:
    """Tells what changed, in the background. A cache that was never used is never told of.

    ``interval``: seconds between two looks at the cache. ``clock`` is in seconds and never goes back.
    """

    def __init__(
        self,
        cache: StepCache,
        operations: Operations,
        owner: str,
        *,
        interval: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._operations = operations
        self._owner = owner
        self._interval = interval
        self._clock = clock
        self._told = CacheGauges()
        self._told_at = 0.0

    def gauges(self) -> CacheGauges:
        """How full the cache is now."""
        figures = self._cache.figures()
        return CacheGauges(entries=figures.entries, bytes=figures.bytes)

    async def tell(self, *, anew: bool = False) -> None:
        """Tell the store what it does not know; ``anew``: also what it may have forgotten.

        Raises StoreUnavailableError.
        """
        gauges, now = self.gauges(), self._clock()
        if gauges == self._told and (gauges == CacheGauges() or not (anew or now - self._told_at > _AGAIN)):
            return
        await self._operations.tell_cache(self._owner, gauges)
        self._told, self._told_at = gauges, now

    @contextlib.asynccontextmanager
    async def telling(self) -> AsyncGenerator[None]:
        """Tell meanwhile, every few seconds."""
        task = asyncio.create_task(self._tell_on(), name="cache-teller")
        try:
            yield
        finally:
            await end_tasks([task])

    async def _tell_on(self) -> NoReturn:
        while True:
            await asyncio.sleep(self._interval)
            with contextlib.suppress(StoreUnavailableError):  # then the next time
                await self.tell()
