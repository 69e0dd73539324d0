"""Gives the jobs of processes that have ended back to the queue, at once and until it is done."""

from __future__ import annotations

import asyncio

from pipeserve.errors import StoreUnavailableError
from pipeserve.process_log import Log
from pipeserve.runtime.backoff import Backoff
from pipeserve.runtime.ports import JobLedger
from pipeserve.runtime.tasks import end_tasks

#: Seconds after which a try without an answer gets company. A supervisor may not have spoken to the store for days,
#: and a connection that died meanwhile without a word (a firewall that forgot it) says so only after its time-out.
_SECOND_TRY_SECONDS = 0.5
#: Seconds for which a store that is away may hold up the supervisor's exit.
_FINISH_SECONDS = 5.0


class Releases:
    """The releases of one supervisor. They go on in the background until :meth:`finish`."""

    def __init__(self, ledger: JobLedger, log: Log, *, second_try: float = _SECOND_TRY_SECONDS) -> None:
        self._ledger = ledger
        self._log = log
        self._second_try = second_try
        self._tasks: set[asyncio.Task[None]] = set()

    def soon(self, owner: str, *, lost: bool) -> None:
        """Give back what ``owner`` holds; ``lost``: it crashed, which counts against the attempts of its jobs."""
        task = asyncio.create_task(self._release(owner, lost=lost), name=f"release-{owner}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait for what is under way, but not for a store that stays away: then the leases run out."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=_FINISH_SECONDS)
        await end_tasks(list(self._tasks))

    async def _release(self, owner: str, *, lost: bool) -> None:
        backoff = Backoff(0.05, 1.0)
        while True:
            try:
                count = await self._first_answer(owner, lost=lost)
            except StoreUnavailableError:
                await asyncio.sleep(backoff.next())
                continue
            if count:
                self._log.warning("gave back the jobs of a worker process", child=owner, jobs=count, lost=lost)
            return

    async def _first_answer(self, owner: str, *, lost: bool) -> int:
        """Releasing twice is harmless, so a second connection may try where the first is silent."""
        tries = [asyncio.create_task(self._ledger.release(owner, lost=lost))]
        try:
            done, _ = await asyncio.wait(tries, timeout=self._second_try)
            if not done:
                tries.append(asyncio.create_task(self._ledger.release(owner, lost=lost)))
                done, _ = await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            await end_tasks(tries)
