"""Stops a worker process without losing work: claim no more, let jobs end, hand back what is left.

The first SIGTERM or SIGINT begins the drain, a second one ends it at once. A job that is handed back loses no attempt.

Python can't stop a thread. A step that ignores its cancel goes on after its job was handed back, and its process would
live as long as it does. So the process leaves with ``os._exit`` then (:func:`leave`): nothing that such a step still
does could be recorded, because its attempt is over in the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field

from pipeserve.errors import StoreUnavailableError
from pipeserve.process_log import Log
from pipeserve.runtime.backoff import Backoff
from pipeserve.runtime.ports import JobLedger
from pipeserve_worker.runner import JobRunner
from pipeserve_worker.worker import JobWorker

#: Seconds that runs have to stop once they are cancelled, before their jobs are handed back all the same.
_STOP_SECONDS = 0.5
#: Seconds for which a store that is away may hold up the exit. After that the supervisor, or the lease, gives back.
_RELEASE_SECONDS = 5.0
#: Seconds that idle threads have to end.
_THREAD_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class StopSignals:
    """What the operator asked of this process."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Stop: end the jobs in hand first."""
    at_once: asyncio.Event = field(default_factory=asyncio.Event)
    """Stop: don't wait for them."""
    relieved: asyncio.Event = field(default_factory=asyncio.Event)
    """Another process has taken this one's place: end the jobs in hand, however long they take, and leave."""

    def signal(self) -> None:
        """One more SIGTERM or SIGINT."""
        if self.asked.is_set():
            self.at_once.set()
        self.asked.set()


@contextlib.contextmanager
def stop_signals() -> Generator[StopSignals]:
    """Turns SIGTERM, SIGINT and SIGUSR1 into events of the running loop, meanwhile."""
    signals = StopSignals()
    loop = asyncio.get_running_loop()
    handled = {signal.SIGTERM: signals.signal, signal.SIGINT: signals.signal, signal.SIGUSR1: signals.relieved.set}
    for number, handler in handled.items():
        loop.add_signal_handler(number, handler)
    try:
        yield signals
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def given_up_when(event: asyncio.Event) -> AsyncGenerator[asyncio.Timeout]:
    """Abandons its body as soon as ``event`` is set; the scope then says ``expired()``."""
    loop = asyncio.get_running_loop()
    scope = asyncio.timeout(None)
    try:
        async with scope:
            watch = asyncio.create_task(event.wait())
            watch.add_done_callback(lambda task: None if task.cancelled() else scope.reschedule(loop.time()))
            try:
                yield scope
            finally:
                watch.cancel()
    except TimeoutError:
        if not scope.expired():  # the body's own
            raise


async def drain(
    worker: JobWorker, runner: JobRunner, ledger: JobLedger, *, seconds: float, stop: StopSignals, log: Log
) -> None:
    """Wait up to ``seconds`` for the jobs in hand, then cancel the rest and give it back. ``worker`` has stopped."""
    idle = asyncio.create_task(worker.wait_idle(), name="drain")
    at_once = asyncio.create_task(stop.at_once.wait(), name="second-signal")
    try:
        if worker.busy:
            log.info("draining", busy=worker.busy, seconds=seconds)
        await asyncio.wait([idle, at_once], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not idle.done():
            worker.drop_unstarted()
            runner.hand_back()
            await asyncio.wait([idle], timeout=_STOP_SECONDS)
    finally:
        idle.cancel()
        at_once.cancel()
    # Even an idle worker may own something: a claim whose reply was lost with its connection.
    released = await _release(ledger, worker.owner, log)
    log.info("drained", handed_back=released, counters=str(runner.counters))


async def _release(ledger: JobLedger, owner: str, log: Log) -> int:
    backoff = Backoff(0.05, 0.5)
    try:
        async with asyncio.timeout(_RELEASE_SECONDS):
            while True:
                try:
                    return await ledger.release(owner, lost=False)
                except StoreUnavailableError:
                    await asyncio.sleep(backoff.next())
    except TimeoutError:
        log.warning("the store is away; what this worker holds goes back when its lease runs out")
        return 0


def leave(code: int) -> int:
    """``code``, if the interpreter can end by itself; if a thread keeps it from that, this ends the process."""
    deadline = time.monotonic() + _THREAD_SECONDS
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
    return code
