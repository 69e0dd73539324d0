"""Types flow through the decorators: pyright in strict mode accepts this file. Nothing here is run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, assert_type

from pipeserve import Batch, Cache, Pipeline, Retry, Step, Stream, Streamed, pipeline, step
from pipeserve.client import AsyncClient, Client, Result
from pipeserve.errors import PipeserveError


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


@step
def longest(words: Stream[str]) -> str:
    return max(words, key=len)


@step
async def counted(words: Stream[str], at_least: int = 1) -> int:
    return len([word async for word in words if len(word) >= at_least])


@step(retry=Retry(on=(ConnectionError,)), cache=Cache(ttl=60))
def shouted(words: Stream[str]) -> Iterator[str]:
    for word in words:
        yield word.upper()


@step
async def whispered(words: Stream[str]) -> AsyncIterator[str]:
    async for word in words:
        yield word.lower()


@step(batch=Batch(max_size=16))
def lengths(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


@step(batch=Batch(), retry=Retry(attempts=2))
async def vectors(texts: list[str], scales: list[float]) -> Sequence[list[float]]:
    return [[scale * len(text)] for text, scale in zip(texts, scales, strict=True)]


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
    assert_type(words, Streamed[str])
    assert_type(await spoken(text), Streamed[bytes])
    head, length = split(join(words))
    assert_type(head, str)
    assert_type(length, int)
    return head * length


@pipeline
async def live_pipeline(text: str, given: Stream[str]) -> tuple[str, int, str]:
    words = tokens(text)
    assert_type(words, Streamed[str])
    loud = shouted(words)
    assert_type(loud, Streamed[str])
    quiet = await whispered(loud)
    assert_type(quiet, Streamed[str])
    return longest(given), await counted(quiet, at_least=2), join(words)


@pipeline
def live_sync_pipeline(text: str) -> str:
    return join(shouted(tokens(text)))


@pipeline(dynamic=True)
def dynamic_pipeline(text: str) -> str:
    words = tokens(text)
    return longest(words) + longest(shouted(words)) + join(words)


@pipeline(dynamic=True)
async def dynamic_async_pipeline(text: str) -> int:
    words = tokens(text)
    quiet = await whispered(words)
    assert_type(quiet, Streamed[str])
    assert_type(quiet[0], str)
    return await counted(words) + await counted(quiet) + len(join(quiet))


@pipeline
async def batched_pipeline(text: str) -> list[float]:
    assert_type(lengths(text), int)
    found = await vectors(text, 2.0)
    assert_type(found, list[float])
    return found


async def call() -> None:
    assert_type(await serve_pipeline("a", top_k=2), Answer)
    assert_type(await stream_pipeline("a"), str)
    assert_type(embed.with_name("left")("a"), list[float])
    assert_type(embed.after("answer")("a", model="large"), list[float])
    assert_type(longest(Streamed(["a", "b"])), str)
    assert_type(await counted(Streamed(["a"])), int)


as_step: Step[..., list[str]] = tokens
as_streaming_step: Step[[str], Stream[str]] = tokens
as_batched_step: Step[[str], int] = lengths
as_async_batched_step: Step[[str, float], Coroutine[Any, Any, list[float]]] = vectors
as_pipeline: Pipeline[..., Any] = stream_pipeline


def called(client: Client) -> None:
    assert_type(client.invoke(text="a").outputs, dict[str, Any])
    assert_type(client.invoke(text="a", into=Answer).outputs, Answer)
    assert_type(client.submit(text="a").result(into=list[str]).outputs, list[str])
    assert_type(client.subscribe(on_event=print, into=Answer), Result[Answer])
    for result in client.map([{"text": "a"}], into=Answer):
        assert_type(result, Result[Answer])
    for either in client.map([{"text": "a"}], return_exceptions=True):
        assert_type(either, Result | PipeserveError)


async def called_on_a_loop(client: AsyncClient) -> None:
    assert_type((await client.invoke(text="a", into=Answer)).outputs, Answer)
    assert_type(await client.subscribe(on_event=print), Result)
    async for result in client.map([{"text": "a"}], into=Answer):
        assert_type(result, Result[Answer])
