"""Ending background tasks, also those that use redis-py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


async def end_tasks(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel ``tasks`` until each has ended, whatever they raise.

    Again and again: ``asyncio.timeout(0)``, with which redis-py looks at a fresh connection, takes a cancellation that
    is on its way for its own and swallows it. Whoever is cancelled meanwhile (a task that is ended in this way may end
    others of its own) is so once ``tasks`` have ended: none is left behind.
    """
    pending = set(tasks)
    cancelled: asyncio.CancelledError | None = None
    while pending:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=0.1)
        except asyncio.CancelledError as error:
            cancelled = error
        for task in [task for task in pending if task.done()]:
            pending.discard(task)
            if not task.cancelled():
                task.exception()  # retrieved: a task that is being ended has nobody to tell
    if cancelled is not None:
        raise cancelled
