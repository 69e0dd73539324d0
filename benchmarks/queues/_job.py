"""The job, and what a file of this folder is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

URL = os.environ["BENCH_REDIS_URL"]
CONCURRENCY = 100
AT_ONCE = 20
"""Enqueues that are under way at the same time."""
_FILE = os.open(os.environ["BENCH_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def mark() -> None:
    """What the job does."""
    os.write(_FILE, b".")


def main(enqueue: Callable[[int], None], worker: Callable[[], None]) -> None:
    """Do what the command line says."""
    if sys.argv[1] == "enqueue":
        enqueue(int(sys.argv[2]))
    else:
        worker()
