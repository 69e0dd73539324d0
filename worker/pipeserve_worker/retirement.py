"""When a worker process has done enough, so that another takes its place: after a number of jobs, or above a size.

What leaks a little with each job would else grow until the kernel ends the process in the middle of its jobs.

A process asks its supervisor for a successor and goes on with its work until that one is ready, so that capacity does
not dip. It asks a little before its last job, at a point with some chance in it: processes that began together do not
all retire together. The number of jobs itself is a promise: it never takes one more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import NoReturn

from pipeserve.process_log import Log
from pipeserve_worker.resident_memory import resident_bytes

_LOOK_SECONDS = 1.0
_MIB = 1024 * 1024


class Retirement:
    """The end of one worker process's service, as it comes near."""

    def __init__(
        self,
        max_jobs: int | None,
        max_rss: int | None,
        log: Log,
        *,
        rss: Callable[[], int | None] = resident_bytes,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        """``max_jobs``: jobs that it may take. ``max_rss``: bytes above which it retires. None: no bound."""
        self.due = asyncio.Event()
        """Set when a successor is wanted."""
        self.reason = ""
        """Why, once it is."""
        self._max_jobs = max_jobs
        self._max_rss = max_rss
        self._log = log
        self._rss = rss
        self._look_seconds = look_seconds
        self._taken = 0
        # Between 10 % and 20 % before the last: time for the successor to start.
        self._ask_at = None if max_jobs is None else max_jobs - random.randint(max_jobs // 10, max_jobs // 5)

    def allows(self, wanted: int) -> int:
        """How many of ``wanted`` jobs it may still take."""
        return wanted if self._max_jobs is None else min(wanted, self._max_jobs - self._taken)

    def took(self, count: int) -> None:
        """It has taken so many jobs more."""
        self._taken += count
        if self._ask_at is not None and self._taken >= self._ask_at:
            self._ask(f"it has taken {self._taken} jobs")

    async def watch(self) -> None:
        """Look at the memory now and then, until it is too much."""
        if self._max_rss is None:
            return
        if (at_start := await asyncio.to_thread(self._rss)) is None:
            self._log.warning("PIPESERVE_MAX_RSS has no effect: this platform does not tell a process's memory")
            return
        if at_start > self._max_rss:
            self._log.warning(
                "a worker process needs more than PIPESERVE_MAX_RSS from the start; each will be replaced after a job",
                rss_mib=at_start // _MIB,
                max_rss_mib=self._max_rss // _MIB,
            )
        await self._look_on(self._max_rss)

    async def _look_on(self, limit: int) -> NoReturn:
        while True:
            await asyncio.sleep(self._look_seconds)
            now = await asyncio.to_thread(self._rss) or 0
            # Not before a job was taken: a bound that is too low must not make a loop of starts.
            if self._taken and now > limit:
                self._ask(f"it has {now // _MIB} MiB resident")

    def _ask(self, reason: str) -> None:
        if not self.due.is_set():
            self.reason = reason
            self.due.set()
