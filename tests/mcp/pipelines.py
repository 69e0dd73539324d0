"""Pipelines that say, show and return what a tool's result has to carry."""

from __future__ import annotations

import asyncio
import logging
import struct
import zlib
from enum import StrEnum
from typing import Annotated, cast

from pydantic import BaseModel, Field

from pipeserve import HTML, PNG, Capture, InvocationError, Markdown, pipeline, progress, step, visualize

logger = logging.getLogger(__name__)


class Tone(StrEnum):
    KIND = "kind"
    RUDE = "rude"


class Address(BaseModel):
    street: str
    number: int = 1


class Person(BaseModel):
    """Whom to greet."""

    name: Annotated[str, Field(min_length=1)]
    address: Address | None = None


@step
def compose(person: Person, tone: Tone, mark: str = "!") -> str:
    return ("Hello, " if tone is Tone.KIND else "Oi, ") + person.name + mark


@pipeline
def greet(person: Person, tone: Tone = Tone.KIND):
    """Greets a person.

    In the tone that is wanted.
    """
    return {"greeting": compose(person, tone)}


@step
def first(text: str) -> str:
    logger.debug("a detail")
    logger.warning("careful with %s", text)
    print("reading")
    progress(0.5, "half of it")
    return text


@step
def second(text: str) -> str:
    return text.upper()


@pipeline
def two_steps(text: str = "a"):
    return second(first(text))


@step
def raises(kind: str) -> str:
    if kind == "polite":
        raise InvocationError(status=404, code="no_such_document", detail="there is no document 7")
    raise RuntimeError("boom in the inside")


@pipeline
def failing(kind: str):
    return raises(kind)


def a_png() -> bytes:
    """One pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


@step
def draw() -> int:
    visualize(PNG(a_png()), "dot")
    visualize(Markdown("# Seen"), "note")
    visualize(HTML("<p>page</p>"), "page")
    return 3


@pipeline(capture=Capture())
def drawing():
    return draw()


@step
def long(size: int) -> str:
    return "x" * size


@pipeline
def two_texts(small: int = 1, large: int = 1):
    return {"small": long(small), "large": long.with_name("other")(large)}


@step
async def wait(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@pipeline
def waiting(seconds: float = 3600.0):
    return wait(seconds)


@step
def lies(text: str) -> int:
    return cast("int", text)


@pipeline
def lying():
    return {"count": lies("three"), "text": long(2)}
