"""SAQ as it comes, but for the number of jobs at once."""

from __future__ import annotations

import asyncio
from typing import Any

from _job import AT_ONCE, CONCURRENCY, URL, main, mark
from saq import Queue, Worker


async def noop(_: Any) -> None:
    mark()


async def _enqueue(count: int) -> None:
    queue = Queue.from_url(URL)
    for start in range(0, count, AT_ONCE):
        await asyncio.gather(*(queue.enqueue("noop") for _ in range(start, min(start + AT_ONCE, count))))


async def _work() -> None:
    await Worker(Queue.from_url(URL), functions=[noop], concurrency=CONCURRENCY).start()


if __name__ == "__main__":
    main(lambda count: asyncio.run(_enqueue(count)), lambda: asyncio.run(_work()))
