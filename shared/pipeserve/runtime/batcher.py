"""Adaptive batching: items of concurrent callers become one call with a list, and each caller gets its own result.

When a batch starts decides how well batching pays. It starts as soon as one of these holds:

- ``max_size`` items wait. No larger batch can come of it, so it starts whatever else runs.
- Nobody is left who could bring one more. So a lone caller never waits.
- No other batch runs, and the oldest item has waited for ``max_wait_ms``.

So while one batch runs, the next gathers, and ``max_wait_ms`` holds only where nothing runs. Most batched functions are
bound by one processor or GPU: a second, smaller batch would only slow the first, each batch would pay the fixed cost of
a call for a few items, and under load they would pile up. Simulated with 20 ms a call and 0.2 ms an item on one
processor, 300 items a second: 32 ms in the median like this; if ``max_wait_ms`` held at all times, 34 items a second
and a queue without end. A function that only waits for another service pays for it with latency, by one more batch at
worst, and only as long as too little comes to fill one: full batches run side by side.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from pipeserve.errors import DrainingError
from pipeserve.sdk.batch import Batch

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class BatcherFigures:
    """What one batcher has done so far."""

    batches: int
    items: int
    """In all those batches."""
    largest: int
    """Items in the largest batch."""
    waiting: int
    """Items that no batch has taken yet."""

    def plus(self, other: BatcherFigures) -> BatcherFigures:
        """Both together."""
        return BatcherFigures(
            self.batches + other.batches,
            self.items + other.items,
            max(self.largest, other.largest),
            self.waiting + other.waiting,
        )


class _Caller(Generic[T, R]):
    """One item and who waits for its result."""

    __slots__ = ("answer", "arrived", "batch", "item", "ripe")

    def __init__(self, item: T, loop: asyncio.AbstractEventLoop) -> None:
        self.item = item
        self.answer: asyncio.Future[R] = loop.create_future()
        self.arrived = loop.time()
        self.ripe = False
        """Whether it has waited for long enough, as the loop's timer says."""
        self.batch: _Batch[T, R] | None = None


class _Batch(Generic[T, R]):
    """Callers whose items are computed together."""

    __slots__ = ("callers", "task")

    def __init__(self, callers: list[_Caller[T, R]]) -> None:
        self.callers = callers
        self.task: asyncio.Task[None] | None = None

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for a result of it."""
        return any(not caller.answer.done() for caller in self.callers)


class Batcher(Generic[T, R]):
    """Gathers the items of concurrent calls on one event loop.

    ``run`` gets a list of items, in the order in which they came, and returns as many results in the same order. A
    result that is an exception is raised for its own item only. When ``run`` itself raises, the batch is halved and
    each half tried again, down to single items, so that one bad item fails its own call only: an item may be seen
    several times. ``run`` belongs to no caller, so it runs in a context of its own, an empty one.

    ``others`` says how many requests are under way in this process that might still bring an item, the caller's own
    included. Whoever knows that it has fallen calls :meth:`review`.
    """

    def __init__(
        self,
        policy: Batch,
        run: Callable[[list[T]], Awaitable[Sequence[R | BaseException]]],
        *,
        others: Callable[[], int],
    ) -> None:
        self._max_size = policy.max_size
        self._max_wait = policy.max_wait_ms / 1000
        self._run = run
        self._others = others
        self._waiting: deque[_Caller[T, R]] = deque()
        self._running: set[_Batch[T, R]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._batches = self._items = self._largest = 0

    async def call(self, item: T) -> R:
        """The result for ``item``, computed together with others.

        A cancel takes the item back; if its batch has started, only the result is dropped, and when all callers of a
        batch have left, its ``run`` is cancelled. Raises what ``run`` raises, or DrainingError once closed.
        """
        if self._closed:
            raise _closed()
        caller: _Caller[T, R] = _Caller(item, asyncio.get_running_loop())
        self._waiting.append(caller)
        self.review()
        try:
            return await caller.answer
        except asyncio.CancelledError:
            self._leave(caller)
            raise

    def review(self) -> None:
        """Start what can start now. On the loop; calling it once too often does no harm."""
        while self._waiting:
            count = len(self._waiting)
            if not (count >= self._max_size or count >= self._others() or (not self._running and self._is_ripe())):
                return
            self._start()

    def figures(self) -> BatcherFigures:
        """What it has done so far."""
        return BatcherFigures(self._batches, self._items, self._largest, len(self._waiting))

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._running

    async def aclose(self, timeout: float = 1.0) -> None:
        """Cancel what runs, wait up to ``timeout`` seconds for its end; whoever still waits gets a DrainingError."""
        self._closed = True
        for caller in self._waiting:
            _settle(caller, _closed())
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        tasks = [batch.task for batch in self._running if batch.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
        for batch in self._running:  # its function ignores the cancel
            for caller in batch.callers:
                _settle(caller, _closed())

    # ---- when a batch starts

    def _is_ripe(self) -> bool:
        """Whether the oldest item has waited for long enough; if not, a timer looks again when it has."""
        oldest = self._waiting[0]
        if oldest.ripe:
            return True
        loop = asyncio.get_running_loop()
        left = oldest.arrived + self._max_wait - loop.time()
        if left <= 0:
            return True
        if self._timer is None:
            self._timer = loop.call_later(left, self._ripen, oldest, context=contextvars.Context())
        return False

    def _ripen(self, oldest: _Caller[T, R]) -> None:
        self._timer = None
        oldest.ripe = True  # whatever the clock says: loops round to milliseconds, and must not wait again for the rest
        self.review()

    def _start(self) -> None:
        batch = _Batch([self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_size))])
        for caller in batch.callers:
            caller.batch = batch
        self._batches += 1
        self._items += len(batch.callers)
        self._largest = max(self._largest, len(batch.callers))
        self._running.add(batch)
        loop = asyncio.get_running_loop()
        batch.task = loop.create_task(self._compute(batch), name="batch", context=contextvars.Context())
        batch.task.add_done_callback(partial(self._ended, batch), context=contextvars.Context())

    def _leave(self, caller: _Caller[T, R]) -> None:
        if caller.batch is None:
            if caller in self._waiting:
                self._waiting.remove(caller)
                self.review()
            return
        if not caller.answer.cancelled():
            caller.answer.exception()  # it came in the same moment; asyncio would complain that nobody has looked
        if not caller.batch.wanted and caller.batch.task is not None:
            caller.batch.task.cancel()

    # ---- what a batch does

    async def _compute(self, batch: _Batch[T, R]) -> None:
        parts = [batch.callers]
        while parts:
            callers = [caller for caller in parts.pop() if not caller.answer.done()]
            if not callers:
                continue
            try:
                results = list(await self._run([caller.item for caller in callers]))
            except asyncio.CancelledError:
                raise
            except Exception as error:  # whatever the function raises: it may be one item's fault
                middle = len(callers) // 2
                if middle:
                    parts += [callers[middle:], callers[:middle]]
                else:
                    _settle(callers[0], error)
            except BaseException as error:  # SystemExit, say: asyncio would let it end the whole process
                for caller in callers:
                    _settle(caller, error)
            else:
                _deliver(callers, results)

    def _ended(self, batch: _Batch[T, R], task: asyncio.Task[None]) -> None:
        self._running.discard(batch)
        for caller in batch.callers:  # whoever still waits: the function was cancelled, or has cancelled itself
            if self._closed:
                _settle(caller, _closed())
            else:
                caller.answer.cancel()
        self.review()


def _deliver(callers: list[_Caller[T, R]], results: list[R | BaseException]) -> None:
    if len(results) == len(callers):
        for caller, result in zip(callers, results, strict=True):
            _settle(caller, result)
        return
    for caller in callers:
        words = f"{len(results)} results for a batch of {len(callers)}: each item needs one, in the order of the items"
        _settle(caller, ValueError(words))


def _settle(caller: _Caller[T, R], result: R | BaseException) -> None:
    if caller.answer.done():  # its caller has left
        return
    if isinstance(result, StopIteration):  # no coroutine may raise it
        result = RuntimeError(f"StopIteration: {result}")
    if isinstance(result, BaseException):
        caller.answer.set_exception(result)
    else:
        caller.answer.set_result(result)


def _closed() -> DrainingError:
    return DrainingError("The process that ran this is shutting down.")
