"""A worker as arq comes: polls twice a second."""

from __future__ import annotations

import os
import time
from typing import Any

from arq.connections import RedisSettings


async def stamp(_: dict[str, Any]) -> float:
    return time.time()


class WorkerSettings:
    """What ``arq benchmarks._stock_arq.WorkerSettings`` reads."""

    functions = (stamp,)
    redis_settings = RedisSettings.from_dsn(os.environ["BENCH_REDIS_URL"])
