"""Pipelines that faults are run over: one whose every result and effect can be judged, and steps that misbehave."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from typing_extensions import TypedDict

from pipeserve import get_context, pipeline, step

PARTS = 3


class Answer(TypedDict):
    """What one job of :func:`drill` gives: it tells whose it is."""

    number: int
    square: int
    parts: list[int]


def demanded(number: int) -> dict[str, object]:
    """The outputs of ``drill(number)``, as a job shows them."""
    return {"output": {"number": number, "square": number * number, "parts": [number + part for part in range(PARTS)]}}


def leave_line(effects: str, what: str) -> None:
    """One line outside the service: job, attempt, process, what happened, when. One short write, so never torn."""
    if effects:
        context = get_context()
        line = f"{context.job_id} {context.attempt} {os.getpid()} {what} {time.time():.6f}\n"
        with open(effects, "ab", buffering=0) as file:
            file.write(line.encode())


@step
async def work(number: int, seconds: float, effects: str) -> AsyncIterator[int]:
    """Yields parts over ``seconds``; a line at its begin, and one at its end whatever ends it."""
    leave_line(effects, "begin")
    try:
        for part in range(PARTS):
            await asyncio.sleep(seconds / PARTS)
            yield number + part
    finally:
        leave_line(effects, "end")


@step
def conclude(number: int, parts: list[int]) -> Answer:
    """In a thread: what the job's parameters demand, if nothing was lost, doubled or mixed up."""
    return {"number": number, "square": number * number, "parts": parts}


@pipeline
async def drill(number: int, seconds: float = 0.2, effects: str = "") -> Answer:
    """``effects``: a file for a line per begin and end of the step; empty: none."""
    return conclude(number, await work(number, seconds, effects))


@step
def misbehave(how: str, size: int, effects: str) -> str:
    leave_line(effects, "begin")
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(7)
        case "memory":
            eaten: list[bytearray] = []
            while len(eaten) < size:  # MiB; each byte is touched, so that it is memory and not only an address
                eaten.append(bytearray(b"x" * 1_048_576))
        case "large":
            return "x" * (size * 1_048_576)
        case _:
            pass
    return how


@pipeline
def misbehaving(how: str, size: int = 0, effects: str = "") -> str:
    """``how``: segfault, exit, memory (eats ``size`` MiB), large (returns ``size`` MiB); any other is harmless."""
    return misbehave(how, size, effects)


@step
def hold_thread(effects: str, until: str) -> str:
    leave_line(effects, "begin")
    while not Path(until).exists():
        if get_context().cancelled:
            return "stopped"
        time.sleep(0.005)
    return "released"


@pipeline
def held(effects: str, until: str) -> str:
    """Waits in a thread for the file ``until``."""
    return hold_thread(effects, until)
