"""Chapter 1: a step is a typed function."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from pipeserve import DefinitionError, Stream, Streamed, emit, get_context, log_metadata, progress, step


@step
def double(x: int, times: int = 2) -> int:
    """Multiply."""
    return x * times


@step
async def fetch(url: str) -> str:
    await asyncio.sleep(0)
    return f"<page of {url}>"


@step
def count_down(start: int) -> Iterator[int]:
    yield from range(start, 0, -1)


@step
async def letters(word: str) -> AsyncIterator[str]:
    for letter in word:
        yield letter


@step
def initials(words: Stream[str]) -> str:
    return "".join(word[0] for word in words)


@step
async def last(words: Stream[str]) -> str:
    found = ""
    async for word in words:
        found = word
    return found


def test_called_on_its_own_a_step_is_its_plain_function() -> None:
    assert double(4) == 8
    assert double(4, times=3) == 12
    assert (double.__name__, double.__doc__) == ("double", "Multiply.")


async def test_an_async_step_is_its_plain_coroutine_function() -> None:
    assert await fetch("x") == "<page of x>"


async def test_a_generator_step_on_its_own_is_its_generator() -> None:
    assert list(count_down(3)) == [3, 2, 1]
    assert [letter async for letter in letters.fn("ab")] == ["a", "b"]


async def test_a_step_that_takes_a_stream_is_called_with_values_that_are_all_there() -> None:
    assert initials(Streamed(["to", "be"])) == "tb"
    assert await last(Streamed(["to", "be"])) == "be"


def test_a_step_that_calls_a_step_calls_a_function() -> None:
    @step
    def quadruple(x: int) -> int:
        return double(double(x))

    assert quadruple(3) == 12


def test_outside_a_run_reporting_does_nothing_and_the_context_is_neutral() -> None:
    progress(0.5, "half way")
    emit({"any": "value"})
    log_metadata({"rows": 3})
    context = get_context()
    assert (context.job_id, context.attempt, context.pipeline_state, context.cancelled) == ("local", 1, None, False)
    assert context.remaining() == float("inf")


def test_a_default_that_json_cannot_carry_is_refused_by_name() -> None:
    with pytest.raises(DefinitionError, match=r"step 'load'.*argument 'model' \(object\).*JSON"):

        @step
        def load(path: str, model: object = object()) -> str:
            return path


def test_nameless_arguments_are_refused_by_name() -> None:
    with pytest.raises(DefinitionError, match=r"step 'total': argument \*numbers"):

        @step
        def total(*numbers: int) -> int:
            return sum(numbers)
