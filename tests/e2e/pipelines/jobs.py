"""Pipelines whose jobs a test can watch and steer through files: each leaves a line, and waits to be told."""

from __future__ import annotations

import asyncio
import datetime
import os
import time
from pathlib import Path
from typing import Annotated

from pydantic import Strict

from pipeserve import Capture, get_context, pipeline, step


def leave_line(path: str) -> None:
    """One line per attempt: job, attempt, process."""
    context = get_context()
    with open(path, "a") as file:
        file.write(f"{context.job_id} {context.attempt} {os.getpid()}\n")


@step
def write(path: str, seconds: float = 0.0) -> str:
    time.sleep(seconds)
    leave_line(path)
    return "written"


@pipeline
def quick(path: str, seconds: float = 0.0) -> str:
    """Takes ``seconds`` and leaves a line."""
    return write(path, seconds)


@pipeline(capture=Capture(memory_only=True))
def quick_in_memory(path: str) -> str:
    """Its job keeps its ledger entry only."""
    return write(path)


@step
def wait_in_thread(started: str, until: str) -> str:
    leave_line(started)
    while not Path(until).exists():
        if get_context().cancelled:
            return "stopped"
        time.sleep(0.005)
    return "released"


@pipeline
def hold(started: str, until: str) -> str:
    """Leaves a line, then waits in a thread for the file ``until``."""
    return wait_in_thread(started, until)


@step
async def wait_on_loop(started: str, until: str) -> str:
    leave_line(started)
    while not Path(until).exists():  # noqa: ASYNC110, ASYNC240 another process makes the file
        await asyncio.sleep(0.005)
    return "released"


@pipeline
async def hold_async(started: str, until: str) -> str:
    """Leaves a line, then waits on the loop for the file ``until``."""
    return await wait_on_loop(started, until)


@step
def ignore_everything(started: str, until: str) -> str:
    leave_line(started)
    while not Path(until).exists():
        time.sleep(0.005)
    return "released"


@pipeline
def stubborn(started: str, until: str) -> str:
    """Like ``hold``, but no cancel reaches it."""
    return ignore_everything(started, until)


@step
async def block_loop(path: str, seconds: float) -> str:
    leave_line(path)
    time.sleep(seconds)  # noqa: ASYNC251 blocking the loop is the point
    return "unblocked"


@pipeline
async def blocking(path: str, seconds: float) -> str:
    """Blocks its process's event loop."""
    return await block_loop(path, seconds)


@step
def leave_with_code(path: str, code: int) -> str:
    leave_line(path)
    os._exit(code)


@pipeline
def poison(path: str, code: int = 9) -> str:
    """Takes its process with it."""
    return leave_with_code(path, code)


def wait_for_ever() -> None:
    Path(os.environ["INIT_STARTED"]).touch()
    while True:
        time.sleep(0.01)


@pipeline(on_init=wait_for_ever)
def never_ready(path: str) -> str:
    """Its processes never come to serve it."""
    return write(path)


@step
def describe(number: int, day: datetime.date) -> str:
    return f"{number} {day}"


@pipeline(capture=Capture(metrics=False))
def exact(number: Annotated[int, Strict()], day: Annotated[datetime.date, Strict()]) -> str:
    """Takes what JSON can carry, and nothing that had to be guessed."""
    return describe(number, day)


hoard: list[bytes] = []


@step
def keep(path: str, mib: int) -> str:
    hoard.append(b"x" * (mib << 20))
    leave_line(path)
    return "kept"


@pipeline
def leaky(path: str, mib: int) -> str:
    """Its process never gives back what each job takes."""
    return keep(path, mib)


@step(executor="process")
def wait_in_process(started: str, until: str) -> str:
    leave_line(started)
    while not Path(until).exists():
        time.sleep(0.005)
    return "released"


@pipeline
def hold_process(started: str, until: str) -> str:
    """Leaves a line with the step's process, then waits there for the file ``until``; no cancel reaches it."""
    return wait_in_process(started, until)


@step
def mixed_thread(path: str, seconds: float) -> str:
    time.sleep(seconds)
    leave_line(path)
    return "thread"


@step
async def mixed_async(path: str, seconds: float) -> str:
    await asyncio.sleep(seconds)
    leave_line(path)
    return "async"


@step(executor="process")
def mixed_process(path: str, seconds: float) -> str:
    time.sleep(seconds)
    leave_line(path)
    return "process"


@pipeline(dynamic=True)
async def mixed(path: str, kind: str, seconds: float = 0.0) -> str:
    """Takes ``seconds`` in a step of this kind, and leaves a line when it has done its work."""
    if kind == "process":
        return await asyncio.to_thread(mixed_process, path, seconds)
    if kind == "thread":
        return await asyncio.to_thread(mixed_thread, path, seconds)
    return await mixed_async(path, seconds)


def refuse_to_start() -> None:
    if not Path(os.environ["MAY_START"]).exists():
        raise RuntimeError("no model here")


@pipeline(on_init=refuse_to_start)
def slow_to_come(path: str) -> str:
    """Its processes can't start until the file is there."""
    return write(path)
