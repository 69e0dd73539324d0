"""The runs that a socket has started and takes with it when it goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from pipeserve.errors import PipeserveError
from pipeserve.runtime.tasks import end_tasks
from pipeserve_api.launch import Launched, Order, launch
from pipeserve_api.lookup import JobLog
from pipeserve_api.services import Services

Leave = Callable[[], Coroutine[Any, Any, None]]

_log = logging.getLogger(__name__)


class OwnRuns:
    """Those whose caller is this socket and nobody else: they are synchronous, and have no idempotency key."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._leaves: dict[str, Leave] = {}
        self._unfollowed: dict[str, asyncio.Task[None]] = {}
        self._launching: set[asyncio.Task[Launched]] = set()

    @property
    def unfollowed(self) -> int:
        """How many of them run on after the client has unsubscribed."""
        return len(self._unfollowed)

    async def launch(self, order: Order) -> Launched:
        """Start one. Whoever waits may be cancelled: it is still known here. Raises ProblemError."""
        task = asyncio.create_task(self._launch(order))
        self._launching.add(task)
        task.add_done_callback(self._launched)
        return await asyncio.shield(task)

    def ended(self, job_id: str) -> None:
        """It needs nobody any more."""
        self._leaves.pop(job_id, None)

    def unfollow(self, job_id: str, log: JobLog, after: int) -> None:
        """The client looks at it no longer, so its end is to be noticed here."""
        if job_id in self._leaves and job_id not in self._unfollowed:
            task = asyncio.create_task(self._await_end(job_id, log, after), name=f"socket-unfollowed-{job_id}")
            self._unfollowed[job_id] = task

    async def leave(self) -> None:
        """Their caller is gone: end them."""
        await asyncio.gather(*self._launching, return_exceptions=True)
        for leave in list(self._leaves.values()):
            try:
                await leave()
            except PipeserveError as error:  # nobody is left to be told, and the others are to end too
                _log.warning("a run whose caller left could not be canceled", extra={"error": str(error)})
        self._leaves.clear()

    async def close(self) -> None:
        """Wait for nothing any more."""
        await end_tasks([*self._launching, *self._unfollowed.values()])

    async def _launch(self, order: Order) -> Launched:
        launched = await launch(self._services, order)
        if launched.leave is not None:
            self._leaves[launched.job_id] = launched.leave
        return launched

    def _launched(self, task: asyncio.Task[Launched]) -> None:
        self._launching.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: whoever waited may be gone

    async def _await_end(self, job_id: str, log: JobLog, after: int) -> None:
        try:
            await log.ended(after=after)
            self.ended(job_id)
        except PipeserveError as error:  # then it is canceled with the socket, which does no harm
            _log.warning("the end of a run is not watched", extra={"job_id": job_id, "error": str(error)})
        finally:
            self._unfollowed.pop(job_id, None)
