"""Waits for something on behalf of an HTTP caller: no longer than they asked, nor than they or this process stay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from typing import Any, TypeVar

from starlette.types import Receive

from pipeserve.runtime.tasks import end_tasks
from pipeserve_api.drain import Drain

LEAVE_WATCH_DELAY = 0.02
"""Seconds before a caller's connection is watched: most runs are over by then and never pay for it."""

T = TypeVar("T")


class Interruption(Enum):
    """Why a wait ended without what it waited for."""

    TIME_UP = auto()
    CALLER_LEFT = auto()
    DRAINING = auto()


async def caller_left(receive: Receive) -> None:
    """Return when the caller's connection is gone. The request's body must have been read, or have none."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def attend(
    work: Coroutine[Any, Any, T], *, seconds: float | None, receive: Receive, drain: Drain
) -> T | Interruption:
    """What ``work`` returns, or why it was given up. It has ended in any case: it is cancelled when given up.

    ``seconds``: None waits for as long as it takes. Raises what ``work`` raises.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(caller_left(receive))
    draining = asyncio.ensure_future(drain.wait())
    waits: list[asyncio.Future[Any]] = [working, leaving, draining]
    try:
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end_tasks(waits)
    if working in done:
        return working.result()
    if leaving in done:
        return Interruption.CALLER_LEFT
    return Interruption.DRAINING if draining in done else Interruption.TIME_UP


class LeaveWatch:
    """Calls ``on_leave`` once the caller has left, from a short while after its making until :meth:`end`."""

    def __init__(self, receive: Receive, on_leave: Callable[[], None]) -> None:
        self._receive = receive
        self._on_leave = on_leave
        self._left = False
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(LEAVE_WATCH_DELAY, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        await caller_left(self._receive)
        self._left = True
        self._on_leave()

    async def end(self) -> bool:
        """Stop watching. Returns whether the caller has left."""
        self._timer.cancel()
        if self._task is not None:
            await end_tasks([self._task])
        return self._left
