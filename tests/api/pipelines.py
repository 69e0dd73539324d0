"""Small pipelines for the service's tests."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated, Any

from pipeserve.errors import InvocationError
from pipeserve.sdk.capture import Capture
from pipeserve.sdk.context import emit, get_context
from pipeserve.sdk.pipeline import pipeline
from pipeserve.sdk.step import step


@step
def upper(text: str, mark: str = "!") -> Annotated[str, "shouted"]:
    return text.upper() + mark


@step
def length(text: str) -> int:
    return len(text)


@pipeline
def shout(text: str, times: int = 1):
    """Shouts."""
    loud = upper(text)
    return {"loud": loud, "length": length(loud)}


@pipeline(capture=Capture(metadata=False))
def quiet(text: str):
    return upper(text)


@pipeline(capture=Capture(memory_only=True))
def secretive(text: str):
    return upper(text)


@step
async def pause(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "rested"


@pipeline
def rest(seconds: float):
    return pause(seconds)


class Gate:
    """Lets a test hold a step, and see what became of it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = asyncio.Event()
        self.cancelled = False


def gated(*, capture: Capture | None = None):
    """A pipeline whose one step waits at a gate, and the gate."""
    gate = Gate()

    @step
    async def hold(text: str) -> str:
        gate.entered.set()
        try:
            emit("waiting")
            await gate.opened.wait()
        except asyncio.CancelledError:
            gate.cancelled = get_context().cancelled
            raise
        return text

    @pipeline(capture=capture)
    def held(text: str = "through"):
        return hold(text)

    return held, gate


@step
def refuse(kind: str) -> str:
    if kind == "polite":
        raise InvocationError(status=404, code="document_not_found", detail="no such document")
    if kind == "garbled":
        raise InvocationError(status=422, code="bad_name", detail="no file \ud800.txt")
    raise RuntimeError("secret detail of the inside")


@step
def keep(value: Any, factor: float = 1.0) -> str:
    return repr(value)


@pipeline
def anything(value: Any):
    return keep(value)


@pipeline
def failing(kind: str):
    return refuse(kind)
