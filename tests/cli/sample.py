"""Pipelines for the command line to deploy, serve and run."""

from __future__ import annotations

import time

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
