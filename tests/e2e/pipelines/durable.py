"""Pipelines with durable steps and shared results; each call leaves a line, so that a test can count them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeserve import Cache, Capture, get_context, pipeline, step


def leave_line(folder: str) -> None:
    """A line in the file of the running step: job, attempt, process."""
    context = get_context()
    with open(Path(folder) / (context.step_name or "body"), "a") as file:
        file.write(f"{context.job_id} {context.attempt} {os.getpid()}\n")


@step(checkpoint=True)
def measure(folder: str, size: int) -> NDArray[np.float64]:
    leave_line(folder)
    return np.arange(size) / 4


@step(checkpoint=True)
def spell(folder: str, size: int) -> Iterator[str]:
    leave_line(folder)
    for number in range(size):
        yield f"part {number}"


@step(checkpoint=True)
async def label(folder: str, parts: list[str]) -> str:
    leave_line(folder)
    return "+".join(parts)


@step
def hold(folder: str, numbers: NDArray[np.float64], name: str) -> float:
    leave_line(folder)
    until = Path(folder) / "until"
    while not until.exists():
        time.sleep(0.005)
    return float(numbers.sum()) + len(name)


@pipeline
async def durable(folder: str, size: int = 4) -> float:
    """Three durable steps, then one that waits for the file ``until``."""
    return hold(folder, measure(folder, size), await label(folder, spell(folder, size)))


@pipeline(capture=Capture(memory_only=True))
def durable_in_memory(folder: str, size: int = 4) -> float:
    """A durable step whose result must not go to the store all the same."""
    return hold(folder, measure(folder, size), "name")


@step(cache=Cache(scope="shared", ttl=600))
def look_up(folder: str, word: str) -> dict[str, int]:
    leave_line(folder)
    return {word: len(word)}


@pipeline
def dictionary(folder: str, word: str) -> dict[str, int]:
    """Whichever process looks a word up first does so for all."""
    return look_up(folder, word)
