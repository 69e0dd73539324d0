"""A pipeline that says each word once a test has opened its gate: what a client sees is proved by handshakes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from pipeserve import get_context, pipeline, step


@step
async def say(gates: str, words: int) -> AsyncIterator[str]:
    """Yields word 0, 1, 2, … as the files ``gates``/0, 1, 2, … appear. ``gates``/begun has a line per begin."""
    folder = Path(gates)
    with (folder / "begun").open("a") as file:
        file.write(f"{get_context().job_id} {os.getpid()}\n")
    try:
        for number in range(words):
            while not (folder / str(number)).exists():  # noqa: ASYNC110 another process makes the file
                await asyncio.sleep(0.005)
            yield f"word {number}"
    finally:
        if get_context().cancelled:
            (folder / "canceled").touch()


@pipeline
async def told(gates: str, words: int = 3) -> list[str]:
    """Says so many words."""
    return await say(gates, words)
