"""taskiq with its list broker and a result backend, which acknowledges nothing: a killed worker loses its jobs."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from _job import AT_ONCE, CONCURRENCY, URL, main, mark
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

broker = ListQueueBroker(URL).with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=3600))


@broker.task(task_name="noop")
async def noop() -> None:
    mark()


async def _enqueue(count: int) -> None:
    await broker.startup()
    for start in range(0, count, AT_ONCE):
        await asyncio.gather(*(noop.kiq() for _ in range(start, min(start + AT_ONCE, count))))
    await broker.shutdown()


def _work() -> None:
    command = (sys.executable, "-m", "taskiq", "worker", "run_taskiq:broker", "--workers", "1")
    os.chdir(Path(__file__).parent)
    os.execv(sys.executable, [*command, "--max-async-tasks", str(CONCURRENCY), "--log-level", "WARNING"])


if __name__ == "__main__":
    main(lambda count: asyncio.run(_enqueue(count)), _work)
