"""Tells the store about finished synchronous runs in the background.

Observability never slows or fails a run, and a store that is away costs nothing:

- What waits is bounded, by number and by size. What does not fit pushes out the oldest, which is dropped and counted.
- A batch that the store refuses, or does not take in time, is tried again with a growing delay.
- When enough has failed, the circuit breaker opens. Then nothing is tried, and only the newest batch is kept. When the
  breaker's time is over, one item of it is the probe: if the store takes it, the breaker closes and the rest follows.
- Trouble is reported at most once per interval.
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
from pipeserve.runtime.breaker import BreakerState, CircuitBreaker
from pipeserve.runtime.tasks import end_tasks

T = TypeVar("T")

_log = logging.getLogger(__name__)
_LINGER = 0.01  # seconds to wait for more items before a batch is written
_FIRST_BACKOFF = 0.1
_LAST_BACKOFF = 5.0
_TOO_SLOW = "the store is too slow for them"
_BATCH_BYTES = 1_048_576  # of a batch of more than one item: it is encoded on the loop, which all runs share


@dataclass(frozen=True, slots=True)
class PublisherFigures:
    """What a publisher has done since its process started, and how it is now."""

    queued: int
    processed: int
    failed_total: int
    """Tries that the store refused or did not answer in time."""
    dropped: int
    """Items that were given up: pushed out by newer ones, or refused each for itself."""
    queue_depth: int
    """Items that wait, those of a try under way among them."""
    breaker: str
    """The breaker's state."""


class Publisher(Generic[T]):
    """Gives items to ``write`` in batches, in order. Leaving it waits ``close_timeout`` seconds for the rest.

    ``write`` may raise StoreUnavailableError, or not return within ``write_timeout`` seconds: then the same is given
    again, perhaps with more, so it must bear repetition. ``released`` is told of each item that is written or given
    up. ``size_of`` is an item's size in memory in bytes, of which at most ``max_bytes`` wait.
    """

    def __init__(
        self,
        write: Callable[[Sequence[T]], Awaitable[None]],
        *,
        released: Callable[[T], None],
        breaker: CircuitBreaker,
        size_of: Callable[[T], int] = lambda _: 0,
        max_queue: int = 1024,
        max_bytes: int = 33_554_432,
        max_batch: int = 64,
        write_timeout: float = 5.0,
        report_interval: float = 15.0,
        close_timeout: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._released = released
        self._breaker = breaker
        self._size_of = size_of
        self._max_queue = max_queue
        self._max_bytes = max_bytes
        self._max_batch = max_batch
        self._write_timeout = write_timeout
        self._close_timeout = close_timeout
        self._queue: deque[tuple[T, int]] = deque()
        self._batch: list[tuple[T, int]] = []  # what is being written
        self._bytes = 0  # of both
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._queued = self._processed = self._failed = self._dropped = 0
        self._one_by_one = 0  # so many of the next items were in a batch that was refused: each for itself now
        self._refusing = False  # the last try failed
        self._trouble = _Trouble(report_interval, clock)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._publish(), name="publisher")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        if self._breaker.state is not BreakerState.OPEN:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), self._close_timeout)
        await end_tasks([self._task])
        self._trouble.shut_down(self._depth)

    def publish(self, item: T) -> None:
        """Queue ``item``; on the loop. Never blocks: what does not fit pushes out the oldest."""
        self._queued += 1
        size = self._size_of(item)
        self._queue.append((item, size))
        self._bytes += size
        self._push_out()
        self._idle.clear()
        self._wake.set()

    def figures(self) -> PublisherFigures:
        """What was done so far."""
        return PublisherFigures(
            queued=self._queued,
            processed=self._processed,
            failed_total=self._failed,
            dropped=self._dropped,
            queue_depth=self._depth,
            breaker=self._breaker.state.value,
        )

    @property
    def _depth(self) -> int:
        return len(self._queue) + len(self._batch)

    async def _publish(self) -> None:
        backoff = Backoff(_FIRST_BACKOFF, _LAST_BACKOFF)
        while True:
            await self._something_to_do()
            if not self._breaker.allow():
                await asyncio.sleep(self._breaker.wait)
                continue
            self._take_batch()
            await self._try_to_write()
            if not self._refusing:
                backoff.reset()
            elif self._breaker.state is BreakerState.CLOSED:
                await asyncio.sleep(backoff.next())

    async def _something_to_do(self) -> None:
        if not self._queue:
            self._idle.set()
            self._wake.clear()
            await self._wake.wait()
            await asyncio.sleep(_LINGER)

    def _take_batch(self) -> None:
        self._trouble.try_begins()
        most = self._max_batch
        if self._one_by_one or self._breaker.state is BreakerState.HALF_OPEN:
            most = 1
            self._one_by_one = max(0, self._one_by_one - 1)
        size = 0
        while self._queue and len(self._batch) < most and (size := size + self._queue[0][1]) <= _BATCH_BYTES:
            self._batch.append(self._queue.popleft())
        if not self._batch:
            self._batch.append(self._queue.popleft())

    async def _try_to_write(self) -> None:
        batch = self._batch
        try:
            async with asyncio.timeout(self._write_timeout):
                await self._write([item for item, _ in batch])
        except (StoreUnavailableError, TimeoutError) as error:
            self._refusing = True
            self._breaker.failed(len(batch))
            self._put_back()
            self._try_failed(error)
        except Exception as error:  # whatever it is, the items after this one must not suffer for it
            self._refusing = False
            if len(batch) > 1:
                self._one_by_one = len(batch)
                self._put_back()
            else:
                self._breaker.failed(1)
                self._give_up(batch.pop())
            self._try_failed(error)
        else:
            self._refusing = False
            self._processed += len(batch)
            self._breaker.succeeded(len(batch))
            for item, size in batch:
                self._bytes -= size
                self._released(item)
            batch.clear()
            self._trouble.try_went_well(self._breaker.state)

    def _try_failed(self, error: Exception) -> None:
        away = isinstance(error, (StoreUnavailableError, TimeoutError))
        self._failed += 1
        self._trouble.met(str(error) or "the store does not answer in time" if away else repr(error))
        self._push_out()
        # An error of another kind is one of ours: where it came from matters.
        self._trouble.tell(self._breaker.state, self._depth, None if away else error)

    def _put_back(self) -> None:
        self._queue.extendleft(reversed(self._batch))
        self._batch.clear()

    def _push_out(self) -> None:
        """Give up the oldest that wait until the rest fits; the newest always does."""
        most = self._max_batch if self._breaker.state is BreakerState.OPEN else self._max_queue
        fits = True
        while len(self._queue) > 1 and (self._depth > most or self._bytes > self._max_bytes):
            fits = False
            self._give_up(self._queue.popleft())
            if self._refusing:  # else the store is only slower than the runs are
                self._breaker.failed(1)
                if self._breaker.state is BreakerState.OPEN:
                    most = self._max_batch
        if not fits:
            self._trouble.tell(self._breaker.state, self._depth)

    def _give_up(self, entry: tuple[T, int]) -> None:
        item, size = entry
        self._bytes -= size
        self._dropped += 1
        self._trouble.dropped()
        self._released(item)


class _Trouble:
    """What is wrong, told at most once per ``interval`` seconds, and that it is over."""

    def __init__(self, interval: float, clock: Callable[[], float]) -> None:
        self._interval = interval
        self._clock = clock
        self._told_at = float("-inf")
        self._told = False  # and not yet that it is over
        self._error = _TOO_SLOW
        self._dropped = 0  # since the last line
        self._dropping = False  # since the last try began

    def try_begins(self) -> None:
        """What happens from now on belongs to this try."""
        self._dropping = False

    def dropped(self) -> None:
        """An item was given up."""
        self._dropped += 1
        self._dropping = True

    def met(self, error: str) -> None:
        """A try has failed. In words, since the error itself would keep alive what its frames have in hand."""
        self._error = error

    def try_went_well(self, state: BreakerState) -> None:
        """Perhaps it is over."""
        if self._dropping or state is not BreakerState.CLOSED:
            return
        self._error = _TOO_SLOW
        if self._told:
            _log.warning("finished runs are recorded again; dropped since the last report: %d", self._dropped)
            self._told, self._dropped = False, 0

    def tell(self, state: BreakerState, waiting: int, traceback_of: Exception | None = None) -> None:
        """Write a line, if it is time for one."""
        now = self._clock()
        if now - self._told_at < self._interval:
            return
        _log.warning(
            "finished runs can't be recorded: %s; dropped since the last report: %d, waiting: %d, breaker: %s",
            self._error,
            self._dropped,
            waiting,
            state.value,
            exc_info=traceback_of,
        )
        self._told_at, self._told, self._dropped = now, True, 0

    def shut_down(self, waiting: int) -> None:
        """No more will be written."""
        if lost := waiting + self._dropped:
            _log.warning("%d finished runs were not recorded: the store was away at shutdown", lost)
