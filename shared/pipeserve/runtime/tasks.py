"""Ending background tasks, also those that use redis-py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


async def end_tasks(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel ``tasks`` until each has ended, whatever they raise.

    Again and again: ``asyncio.timeout(0)``, with which redis-py looks at a fresh connection, takes a cancellation that
    is on its way for its own and swallows it.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=0.1)
        for task in done:
            if not task.cancelled():
                task.exception()  # retrieved: a task that is being ended has nobody to tell
