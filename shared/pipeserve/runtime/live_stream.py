"""What a step of a run has yielded so far, for the steps that read it while it yields more.

The producer never waits for its readers: its value is the list of all its yields anyway, and this is that list.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Generic, TypeVar

from pipeserve.runtime.run import RunStopped
from pipeserve.sdk.stream import Stream, Streamed

T = TypeVar("T")

_VALUES_AT_ONCE = 64  # that an async reader takes without waiting; then the loop's other work has its turn


class LiveStream(Stream[T]):
    """A list that grows, and its readers: in threads and on event loops, any number, each from the first value."""

    def __init__(self, step: str, loop_thread: int) -> None:
        """``step`` yields the values; ``loop_thread`` is the thread that no reader may hold up."""
        self.values: Streamed[T] = Streamed()
        self._step = step
        self._loop_thread = loop_thread
        self._changed = threading.Condition(threading.Lock())
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False
        self._stopped = False

    # ---- the producer, from any thread

    def put(self, value: T) -> None:
        """Add a value."""
        with self._changed:
            self.values.append(value)
            self._wake()

    def close(self) -> None:
        """That was all."""
        with self._changed:
            self._closed = True
            self._wake()

    def stop(self) -> None:
        """The run stops, because the producer has failed or for another reason: who reads is stopped too."""
        with self._changed:
            self._stopped = True
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                waiter.get_loop().call_soon_threadsafe(_finish, waiter)

    # ---- the readers

    def __iter__(self) -> Iterator[T]:
        if threading.get_ident() == self._loop_thread:
            raise TypeError(
                f"step {self._step!r} may still be yielding what this reads, and `for` in an async step would hold up "
                "the event loop. Use `async for`"
            )
        return self._iterate()

    def _iterate(self) -> Iterator[T]:
        index = 0
        while self._has(index) or self._wait(index):
            yield self.values[index]
            index += 1

    def __aiter__(self) -> AsyncIterator[T]:
        return _AsyncReader(self)

    def _has(self, index: int) -> bool:
        """Whether this value is there. Raises RunStopped, once nothing counts any more."""
        if self._stopped:
            raise RunStopped
        return index < len(self.values)

    def _wait(self, index: int) -> bool:
        """In a thread: whether this value comes; False: the stream has ended before it."""
        with self._changed:
            while not self._has(index) and not self._closed:
                self._changed.wait()
            return self._has(index)

    async def wait_async(self, index: int) -> bool:
        """The same on an event loop."""
        while not self._has(index):
            waiter = self._waiter(index)
            if waiter is None:
                return self._has(index)
            await waiter
        return True

    def _waiter(self, index: int) -> asyncio.Future[None] | None:
        """Done at the next change; None: there is no need to wait."""
        with self._changed:
            if self._closed or self._stopped or index < len(self.values):
                return None
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            return waiter


class _AsyncReader(AsyncIterator[T], Generic[T]):
    """One pass. A class: an async generator that is left early needs its loop to clean up."""

    def __init__(self, stream: LiveStream[T]) -> None:
        self._stream = stream
        self._index = 0

    async def __anext__(self) -> T:
        if not await self._stream.wait_async(self._index):
            raise StopAsyncIteration
        self._index += 1
        if self._index % _VALUES_AT_ONCE == 0:
            await asyncio.sleep(0)
        return self._stream.values[self._index - 1]


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():  # its reader was cancelled meanwhile
        waiter.set_result(None)
