"""The threads in which sync steps run.

Not ``concurrent.futures``: its threads are joined at interpreter exit, so one step that never returns would keep the
process alive for ever. These are daemons, made on demand and kept.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)


class ThreadPool:
    """Up to ``max_threads`` daemon threads; calls beyond that wait in order."""

    def __init__(self, max_threads: int, name: str) -> None:
        self._max_threads = max_threads
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._unfinished = 0  # calls that run or wait for a thread
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, call: Callable[[], None]) -> None:
        """Run ``call`` in a thread, soon. It must not raise: it has nobody to tell."""
        self._calls.put(call)
        self._grow(1)

    async def call(self, function: Callable[[], T]) -> T:
        """The result of ``function``, called in a thread of the pool in this context.

        A cancel leaves the thread to itself; the pool makes up for it until it comes back.
        """
        context = contextvars.copy_context()
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        lock = threading.Lock()
        over = left = False

        def work() -> None:
            nonlocal over
            try:
                result = context.run(function)
            except StopIteration as error:  # no coroutine may raise it: asyncio's future would never be done
                raised = RuntimeError(f"StopIteration: {error}")
                raised.__cause__ = error
                future.set_exception(raised)
            except BaseException as error:  # it is the caller's to handle
                future.set_exception(error)
            else:
                future.set_result(result)
            with lock:
                over = True
            if left:
                self.lower(1)

        self.submit(work)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            with lock:
                left = not over
            if left:
                self.lift(1)
            raise

    def lift(self, count: int) -> None:
        """Allow ``count`` more threads: as many were left behind by runs that have ended without them."""
        with self._lock:
            self._max_threads += count
        _log.warning("%d thread(s) ignore that their run is over; the pool makes up for them", count)
        for _ in range(count):
            self._grow()

    def lower(self, count: int) -> None:
        """Take back what :meth:`lift` allowed: so many have come back."""
        with self._lock:
            self._max_threads -= count

    def close(self, timeout: float) -> bool:
        """Let the threads end; wait up to ``timeout`` seconds. Returns whether all did."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._calls.put(None)
        share = timeout / max(len(threads), 1)
        for thread in threads:
            thread.join(share)
        return not any(thread.is_alive() for thread in threads)

    def _grow(self, new: int = 0) -> None:
        """One more thread, if all are busy and there may be more. ``new``: so many calls have come."""
        with self._lock:
            self._unfinished += new
            if self._closed or len(self._threads) >= min(self._max_threads, self._unfinished):
                return
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
        contextvars.Context().run(thread.start)  # it serves many: whoever is the first leaves nothing of its context

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except BaseException:  # a bug here must not cost the pool a thread
                _log.exception("a unit of work raised")
            finally:
                del call  # an idle thread would keep a whole request alive, with its answer
                with self._lock:
                    self._unfinished -= 1
