"""Pipelines for the command line to deploy, serve and run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from pipeserve import InvocationError, emit, pipeline, progress, step


@step
def compose(name: str, times: int, greeting: str = "Hello") -> list[str]:
    print("composing")
    return [f"{greeting}, {name}!" for _ in range(times)]


@pipeline
def greet(name: str, times: int = 1) -> list[str]:
    """Greets somebody, as often as wanted."""
    return compose(name, times)


@step
def count(seconds: float) -> int:
    ticks = round(seconds / 0.02)
    for tick in range(ticks):
        time.sleep(0.02)
        progress((tick + 1) / ticks, "counting")
        emit(tick)
    return ticks


@pipeline
def slow(seconds: float = 0.1) -> int:
    return count(seconds)


@step
def refuse(reason: str) -> None:
    raise InvocationError(status=418, code="teapot", detail=reason)


@pipeline
def refusing(reason: str = "I am a teapot") -> None:
    return refuse(reason)


@step
def spell(word: str) -> Iterator[str]:
    yield from word


@pipeline
def spelling(word: str = "abc") -> list[str]:
    return spell(word)


@step
async def sleep(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@pipeline
def sleeping(seconds: float = 0.0):
    return sleep(seconds)
