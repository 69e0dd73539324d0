"""What the token benchmark serves: a step that yields as a language model does, the time of each yield as its text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from pipeserve import pipeline, step


@step
async def generate(count: int, rate: float, begins_at: float) -> AsyncIterator[float]:
    for index in range(count):
        await asyncio.sleep(max(0.0, begins_at + index / rate - time.time()))
        yield time.time()


@pipeline
def tokens(count: int, rate: float, begins_at: float = 0.0) -> Any:
    """``count`` tokens, ``rate`` a second from ``begins_at`` on; each is the Unix time of its yield."""
    return generate(count, rate, begins_at)
