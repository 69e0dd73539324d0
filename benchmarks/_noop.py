"""A pipeline that does almost nothing: it leaves one byte in the file ``BENCH_FILE``, as the jobs in ``queues`` do."""

from __future__ import annotations

import os

from pipeserve import Capture, pipeline, step

_FILE = os.open(os.environ["BENCH_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if "BENCH_FILE" in os.environ else -1


@step
async def mark() -> None:
    os.write(_FILE, b".")


@pipeline
async def noop() -> None:
    """Leaves one byte."""
    await mark()


@pipeline(capture=Capture(memory_only=True))
async def noop_in_memory() -> None:
    """Leaves one byte, and keeps its ledger entry only."""
    await mark()
