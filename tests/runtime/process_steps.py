"""Steps that ``test_processes.py`` runs in processes of their own. They stand here because children import them."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeserve import InvocationError, Stream, emit, get_context, log_metadata, pipeline, progress, step
from pipeserve.sdk.context import visualize

STOP = 600
"""Seconds for which a step hangs that must be killed; longer than any test may take."""


@dataclass
class State:
    """What ``on_init`` makes."""

    pid: int
    loop: int
    calls: int = 0


async def open_state() -> State:
    print("on_init speaks to nobody's log")
    return State(os.getpid(), id(asyncio.get_running_loop()))


def close_state(state: State) -> None:
    if "PROCESS_STEPS_FOLDER" in os.environ:
        Path(os.environ["PROCESS_STEPS_FOLDER"], f"closed-{state.pid}").touch()


@step(executor="process")
def whoami(label: str = "") -> tuple[str, int]:
    return label, os.getpid()


@step(executor="process")
def where() -> dict[str, Any]:
    context = get_context()
    context.pipeline_state.calls += 1
    return {
        "job_id": context.job_id,
        "attempt": context.attempt,
        "run_name": context.run_name,
        "step_name": context.step_name,
        "remaining": context.remaining(),
        "cancelled": context.cancelled,
        "state": context.pipeline_state,
        "pid": os.getpid(),
    }


@step(executor="process")
async def on_one_loop() -> bool:
    await asyncio.sleep(0)
    return get_context().pipeline_state.loop == id(asyncio.get_running_loop())


@step(executor="process")
def speak(path: str) -> None:
    """Say one thing of each kind, then wait until the file at ``path`` is there."""
    progress(0.5, "half")
    print("one\ntwo")
    print("no line end", end="")
    log_metadata({"rows": 3, "lock": threading.Lock()})
    emit({"partial": 1})
    logging.getLogger("author").info("logged %d", 1)
    wait_for(path)


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.005)


@step(executor="process")
def hold(label: str, folder: str) -> tuple[str, int]:
    """Make the file ``started-<label>``, and return when there is ``release-<label>``."""
    Path(folder, f"started-{label}").touch()
    wait_for(f"{folder}/release-{label}")
    return label, os.getpid()


@step(executor="process")
def count_to(last: int) -> Iterator[int]:
    for number in range(last):
        if number == 2:
            emit("between")
        yield number


@step(executor="process")
def squares(last: int) -> Iterator[int]:
    return (number * number for number in range(last))


@step(executor="process")
async def count_later(last: int) -> AsyncIterator[int]:
    for number in range(last):
        await asyncio.sleep(0)
        yield number


@step(executor="process")
def yield_then_fail() -> Iterator[int]:
    yield 1
    raise LookupError("no more")


@step(executor="process")
def total(numbers: Stream[int]) -> int:
    return sum(numbers)


class NeedsTwo(Exception):
    """Pickles, but can't be made again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class HoldsLock(Exception):
    """Does not pickle."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


@step(executor="process")
def fail(how: str) -> None:
    match how:
        case "plain":
            raise KeyError("missing")
        case "answer":
            raise InvocationError(status=404, code="no_such_thing", detail="there is none")
        case "needs two":
            raise NeedsTwo("a", "b")
        case "holds lock":
            raise HoldsLock
        case "exit":
            sys.exit(3)
        case _:
            raise AssertionError(how)


@step(executor="process")
def die(how: str) -> None:
    print("last words", flush=True)
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), getattr(signal, how))


@step(executor="process")
def hang(how: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    print(f"pid {os.getpid()}")
    if how == "with a process of its own":
        child = subprocess.Popen(["sleep", str(STOP)])
        print(f"pid {child.pid}")
        child.wait()
    elif how == "in C, with the interpreter's lock":
        ctypes.PyDLL(None).sleep(STOP)
    time.sleep(STOP)


@step(executor="process")
def echo(value: Any, *, other: Any = None) -> Any:
    return value


@step(executor="process")
def not_picklable() -> Any:
    return threading.Lock()


@step(executor="process")
def flood(lines: int, length: int) -> None:
    text = "x" * length
    for _ in range(lines):
        get_context().log("info", text, "author")


@step(executor="process")
def tell(word: str) -> None:
    print(f"printed {word}")
    sys.stderr.write(f"written {word}\n")
    logging.getLogger("author").warning("logged %s", word)


class Drawing:
    """Does not pickle, and can be shown."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def _repr_html_(self) -> str:
        return "<b>drawn</b>"


@step(executor="process")
def show() -> None:
    visualize(Drawing(), "a drawing")
    visualize(object())


@step(executor="process")
def fork_and_speak() -> int:
    forked = os.fork()
    if forked == 0:
        print("from the fork")
        logging.getLogger("author").error("from the fork")
        os._exit(0)
    os.waitpid(forked, 0)
    print("from the step")
    return os.getpid()


@step(executor="process")
def leave_a_thread() -> None:
    """A thread that reports for as long as the process lives."""
    context = get_context()

    def work() -> None:
        while True:
            context.log("info", "from the thread", "author")
            time.sleep(0.001)

    threading.Thread(target=work, daemon=True).start()


@step(executor="process")
def descriptors() -> list[str]:
    found: list[str] = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # that of the folder itself
            continue
    return found


@step(executor="process")
def interrupt_myself() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return "still here"


@pipeline
def without_hooks() -> tuple[str, int]:
    return whoami()


@pipeline(on_init=open_state, on_cleanup=close_state)
def with_hooks() -> dict[str, Any]:
    return where()


async def refuse() -> None:
    raise ConnectionError("no database")


@pipeline(on_init=refuse)
def with_broken_init() -> tuple[str, int]:
    return whoami()


SEEN: ContextVar[str] = ContextVar("seen", default="nothing")


@step(executor="process")
def remember(word: str) -> str:
    """What this context holds; it holds ``word`` from now on."""
    before = SEEN.get()
    SEEN.set(word)
    return before


def start_late() -> None:
    time.sleep(1.2)


@step(executor="process", timeout=1.0)
def soon(word: str) -> tuple[str, float]:
    return word, get_context().remaining()


@pipeline(on_init=start_late)
def started_late(word: str) -> tuple[str, float]:
    return soon(word)


@pipeline
def remembering(word: str) -> str:
    return remember(word)
