"""streaq as it comes, but for the number of jobs at once."""

from __future__ import annotations

import asyncio

from _job import AT_ONCE, CONCURRENCY, URL, main, mark
from streaq import Worker

worker = Worker(redis_url=URL, concurrency=CONCURRENCY)


@worker.task
async def noop() -> None:
    mark()


async def _enqueue(count: int) -> None:
    async with worker:
        for start in range(0, count, AT_ONCE):
            await asyncio.gather(*(_one() for _ in range(start, min(start + AT_ONCE, count))))


async def _one() -> None:
    await noop.enqueue()


if __name__ == "__main__":
    main(lambda count: asyncio.run(_enqueue(count)), worker.run_sync)
