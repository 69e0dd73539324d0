"""What the benchmarks serve: plain functions, and the same functions as steps."""

from __future__ import annotations

import asyncio
import time

from pipeserve import Capture, pipeline, step


def split_words(text: str) -> list[str]:
    """The words of ``text``, in lower case."""
    return text.lower().split()


def count_words(words: list[str]) -> dict[str, int]:
    """How often each word is there."""
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return counts


split_step = step(split_words)
count_step = step(count_words)


@pipeline
def word_counts(text: str) -> dict[str, int]:
    return count_step(split_step(text))


@pipeline(capture=Capture(memory_only=True))
def word_counts_in_memory(text: str) -> dict[str, int]:
    return count_step(split_step(text))


@step
def now() -> float:
    return time.time()


@pipeline
def stamp() -> float:
    """When its step started, in Unix seconds."""
    return now()


@step
async def rest(seconds: float) -> None:
    await asyncio.sleep(seconds)


@pipeline
async def pause(seconds: float) -> None:
    """Takes ``seconds``."""
    await rest(seconds)
