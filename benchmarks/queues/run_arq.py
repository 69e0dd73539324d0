"""arq as it comes, but for the number of jobs at once."""

from __future__ import annotations

import asyncio
from typing import Any

from _job import AT_ONCE, CONCURRENCY, URL, main, mark
from arq.connections import RedisSettings, create_pool
from arq.worker import run_worker


async def noop(_: dict[str, Any]) -> None:
    mark()


class WorkerSettings:
    functions = (noop,)
    redis_settings = RedisSettings.from_dsn(URL)
    max_jobs = CONCURRENCY


async def _enqueue(count: int) -> None:
    pool = await create_pool(RedisSettings.from_dsn(URL))
    for start in range(0, count, AT_ONCE):
        await asyncio.gather(*(pool.enqueue_job("noop") for _ in range(start, min(start + AT_ONCE, count))))


if __name__ == "__main__":
    main(lambda count: asyncio.run(_enqueue(count)), lambda: run_worker(WorkerSettings))
