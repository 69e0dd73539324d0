"""Writing what must be written: again and again, until the store has it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.backoff import Backoff

T = TypeVar("T")

_FIRST_BACKOFF = 0.05
_LAST_BACKOFF = 1.0


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Call until the store answers; only a cancel ends that earlier."""
    backoff = Backoff(_FIRST_BACKOFF, _LAST_BACKOFF)
    while True:
        try:
            return await call()
        except StoreUnavailableError:
            await asyncio.sleep(backoff.next())
