"""Types flow through the decorators: pyright in strict mode accepts this file. Nothing here is run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, assert_type

from pipeserve import Pipeline, Step, pipeline, step


@dataclass
class Answer:
    text: str
    score: float


@step
def embed(text: str, model: str = "small") -> list[float]:
    return [float(len(text) + len(model))]


@step(timeout=5)
async def answer(text: str, vector: list[float]) -> Answer:
    return Answer(text, vector[0])


@step
def tokens(text: str) -> Iterator[str]:
    yield from text.split()


@step
async def spoken(text: str) -> AsyncIterator[bytes]:
    yield text.encode()


@step
def join(words: list[str]) -> Annotated[str, "joined"]:
    return " ".join(words)


@step
def split(text: str) -> tuple[Annotated[str, "head"], Annotated[int, "length"]]:
    return text[0], len(text)


@pipeline
async def serve_pipeline(text: str, top_k: int = 3) -> Answer:
    vector = embed(text)
    assert_type(vector, list[float])
    found = await answer(text, vector)
    assert_type(found, Answer)
    return found


@pipeline(dynamic=True)
async def stream_pipeline(text: str) -> str:
    words = tokens(text)
    assert_type(words, list[str])
    assert_type(await spoken(text), list[bytes])
    head, length = split(join(words))
    assert_type(head, str)
    assert_type(length, int)
    return head * length


async def call() -> None:
    assert_type(await serve_pipeline("a", top_k=2), Answer)
    assert_type(await stream_pipeline("a"), str)
    assert_type(embed.with_name("left")("a"), list[float])
    assert_type(embed.after("answer")("a", model="large"), list[float])


as_step: Step[..., list[str]] = tokens
as_pipeline: Pipeline[..., Any] = stream_pipeline
