"""Waits for something on behalf of an HTTP caller: no longer than they asked, nor than they or this process stay."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from enum import Enum, auto
from typing import Any, TypeVar

from starlette.types import Receive

from pipeserve_api.drain import Drain

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
        await cancel_all(waits)
    if working in done:
        return working.result()
    if leaving in done:
        return Interruption.CALLER_LEFT
    return Interruption.DRAINING if draining in done else Interruption.TIME_UP


async def cancel_all(tasks: list[asyncio.Future[Any]]) -> None:
    """Cancel those that still run, and wait until each has ended. What they raise stays with them."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
