"""Tells the store about finished synchronous runs in the background.

Observability never slows or fails a run: the queue is bounded, what does not fit is dropped and counted, and trouble is
reported at most once per interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.backoff import Backoff

T = TypeVar("T")

_log = logging.getLogger(__name__)
_LINGER = 0.01  # seconds to wait for more items before a batch is written
_FIRST_BACKOFF = 0.1
_LAST_BACKOFF = 5.0
_REPORT_INTERVAL = 15.0  # seconds between two reports of trouble


@dataclass(frozen=True, slots=True)
class PublisherFigures:
    """What a publisher has done since its process started."""

    queued: int
    processed: int
    failed_total: int
    """Tries that the store refused or did not answer."""
    dropped: int
    queue_depth: int


class Publisher(Generic[T]):
    """Gives items to ``write`` in batches, in order. Leaving it waits ``close_timeout`` seconds for the rest."""

    def __init__(
        self,
        write: Callable[[Sequence[T]], Awaitable[None]],
        *,
        released: Callable[[T], None],
        max_queue: int = 1024,
        max_batch: int = 64,
        close_timeout: float = 1.0,
    ) -> None:
        self._write = write
        self._released = released
        self._max_queue = max_queue
        self._max_batch = max_batch
        self._close_timeout = close_timeout
        self._queue: deque[T] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._queued = self._processed = self._failed = self._dropped = 0
        self._one_by_one = 0  # so many of the next items were in a batch that failed: each for itself now
        self._reported = float("-inf")

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._publish(), name="publisher")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), self._close_timeout)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._queue:
            _log.warning("%d finished runs were not recorded: the store was away at shutdown", len(self._queue))

    def publish(self, item: T) -> None:
        """Queue ``item``; on the loop. Never blocks: when the queue is full, the item is dropped and counted."""
        self._queued += 1
        if len(self._queue) >= self._max_queue:
            self._dropped += 1
            self._report(f"the queue of finished runs is full ({self._max_queue}); {self._dropped} dropped so far")
            self._released(item)
            return
        self._queue.append(item)
        self._idle.clear()
        self._wake.set()

    def figures(self) -> PublisherFigures:
        """What was done so far."""
        return PublisherFigures(self._queued, self._processed, self._failed, self._dropped, len(self._queue))

    async def _publish(self) -> None:
        backoff = Backoff(_FIRST_BACKOFF, _LAST_BACKOFF)
        while True:
            if not self._queue:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
                await asyncio.sleep(_LINGER)
            size = 1 if self._one_by_one else min(len(self._queue), self._max_batch)
            self._one_by_one = max(0, self._one_by_one - 1)
            batch = [self._queue[index] for index in range(size)]
            try:
                await self._write(batch)
            except StoreUnavailableError as error:
                self._failed += 1
                self._report(f"finished runs can't be recorded: {error}")
                await asyncio.sleep(backoff.next())
                continue
            except Exception:
                self._failed += 1
                _log.exception("%d finished runs could not be recorded", len(batch))
            else:
                self._processed += len(batch)
                backoff.reset()
            for _ in batch:
                self._released(self._queue.popleft())

    def _report(self, message: str) -> None:
        now = time.monotonic()
        if now - self._reported >= _REPORT_INTERVAL:
            self._reported = now
            _log.warning("%s", message)
