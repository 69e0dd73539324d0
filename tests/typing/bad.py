"""Mistakes that the decorators must not hide: pyright reports each line marked ``# error``. Nothing here is run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from pipeserve import Batch, Capture, Retry, Stream, pipeline, step


@step
def double(x: int) -> int:
    return 2 * x


@step
async def later(x: int) -> int:
    return x


@step
def numbers(n: int) -> Iterator[int]:
    yield from range(n)


@step
async def spoken(n: int) -> AsyncIterator[str]:
    yield str(n)


@step
def joined(words: Stream[str]) -> str:
    return "".join(words)


@step(batch=Batch())
def lengths(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


@pipeline
def served(x: int) -> int:
    return double(x)


def mistakes() -> None:
    double("three")  # error
    double()  # error
    double(1, factor=2)  # error
    text: str = double(1)  # error
    served("one")  # error
    double(later(1))  # error
    Capture(unknown=True)  # error
    Capture(logs="yes")  # error
    joined(numbers(3))  # error
    joined(["a"])  # error
    joined(spoken(3))  # error
    lengths(["a"])  # error
    sizes: list[int] = lengths("a")  # error
    Retry(attempts="3")  # error
    step(batch=Batch(), executor="process")  # error
    print(text, sizes)
