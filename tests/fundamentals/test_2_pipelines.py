"""Chapter 2: a pipeline calls steps. A static one is read once into a graph; a dynamic one runs its body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from pipeserve import Capture, DefinitionError, Pipeline, Stream, get_context, pipeline, step


@dataclass
class Point:
    x: int
    tags: list[str]


@step
def double(x: int) -> int:
    return 2 * x


@step
def add(a: int, b: int) -> int:
    return a + b


@step
async def later(x: int) -> int:
    await asyncio.sleep(0)
    return x + 1


@step
def locate(x: int) -> Point:
    return Point(x, ["a", "b"])


@step
def split(text: str) -> tuple[Annotated[str, "head"], Annotated[int, "length"]]:
    return text[0], len(text)


@step
def numbers(n: int) -> Iterator[int]:
    yield from range(n)


@step
async def letters(word: str) -> AsyncIterator[str]:
    for letter in word:
        yield letter


@step
def total(values: list[int]) -> int:
    return sum(values)


@step
def joined(values: list[str]) -> str:
    return "".join(values)


@step
def longest(words: Stream[str]) -> str:
    return max(words, key=len)


def names(served: Pipeline[..., Any]) -> list[str]:
    return [output.name for output in served.definition.outputs]


def test_called_outside_a_service_a_pipeline_runs_in_this_process() -> None:
    @pipeline
    def served(x: int, y: int = 1) -> int:
        return add(double(x), y)

    assert served(3) == 7
    assert served(3, y=10) == 16


def test_its_body_is_read_once_into_a_graph() -> None:
    reads: list[str] = []

    @pipeline
    def served(x: int) -> int:
        reads.append("read")
        return add(double(x), double(x))

    assert (served(1), served(2)) == (4, 8)
    assert reads == ["read"]
    nodes = {node.name: node.upstream for node in served.definition.nodes}
    assert nodes == {"double": (), "double_2": (), "add": ("double", "double_2")}


def test_items_and_attributes_of_results_are_carried_into_the_graph() -> None:
    @pipeline
    def served(x: int) -> dict[str, Any]:
        point = locate(x)
        return {"x": double(point.x), "tag": joined([point.tags[1], "!"])}

    assert served(2) == {"x": 4, "tag": "b!"}


def test_a_tuple_of_named_types_unpacks() -> None:
    @pipeline
    def served(text: str) -> dict[str, Any]:
        head, length = split(text)
        return {"doubled": double(length), "head": head}

    assert served("abc") == {"doubled": 6, "head": "a"}


def test_outputs_are_named_by_annotation_then_by_the_step_then_output() -> None:
    @pipeline
    def unnamed(x: int) -> int:
        return double(x)

    @pipeline
    def named(x: int) -> Annotated[int, "twice"]:
        return double(x)

    @pipeline
    def several(text: str) -> tuple[Annotated[int, "size"], Annotated[str, "first"]]:
        head, length = split(text)
        return length, head

    @pipeline
    def whole(text: str) -> tuple[str, int]:
        return split(text)

    assert (names(unnamed), names(named), names(several), names(whole)) == (
        ["output"],
        ["twice"],
        ["size", "first"],
        ["head", "length"],
    )


def test_with_name_names_one_call() -> None:
    @pipeline
    def served(x: int) -> int:
        return add(double.with_name("left")(x), double.with_name("right")(x))

    assert {node.name for node in served.definition.nodes} == {"left", "right", "add"}


def test_after_orders_steps_that_share_no_data() -> None:
    order: list[str] = []

    @step
    def prepare() -> None:
        order.append("prepare")

    @step
    def publish(x: int) -> int:
        order.append("publish")
        return x

    @pipeline
    def served(x: int) -> int:
        ready = prepare()
        return publish.after(ready)(x)

    assert served(1) == 1
    assert order == ["prepare", "publish"]


async def test_an_async_pipeline_awaits_its_async_steps() -> None:
    @pipeline
    async def served(x: int) -> int:
        return double(await later(x))

    assert await served(1) == 4


def test_in_a_pipeline_a_stream_is_the_list_of_its_yields() -> None:
    @pipeline
    async def served(n: int, word: str) -> dict[str, Any]:
        return {"sum": total(numbers(n)), "word": joined(await letters(word))}

    assert asyncio.run(served(4, "abc")) == {"sum": 6, "word": "abc"}


def test_a_list_does_where_a_step_takes_a_stream() -> None:
    @pipeline
    def served(words: Stream[str]) -> str:
        return longest(words)

    assert served(["to", "be", "not"]) == "not"  # type: ignore[arg-type]
    assert served.definition.input_schema()["properties"]["words"]["type"] == "array"


def test_a_pipeline_in_a_pipeline_joins_its_graph() -> None:
    @pipeline
    def inner(x: int) -> int:
        return double(x)

    @pipeline
    def outer(x: int) -> int:
        return add(inner(x), inner(inner(x)))

    assert outer(1) == 6
    assert len(outer.definition.nodes) == 4


def test_a_dynamic_pipeline_runs_its_body_for_each_call() -> None:
    @pipeline(dynamic=True)
    def served(n: int) -> int:
        result = 0
        for value in range(n):
            if value % 2:
                result = add(result, double(value))
        return result

    assert (served(4), served(2)) == (8, 2)
    assert [found.name for found in served.definition.steps] == ["add", "double"]


async def test_a_dynamic_pipeline_may_be_async_and_may_yield() -> None:
    @pipeline(dynamic=True)
    async def gathered(n: int) -> int:
        return sum(await asyncio.gather(*[later(value) for value in range(n)]))

    @pipeline(dynamic=True)
    def yielding(n: int) -> Iterator[int]:
        for value in numbers(n):
            yield double(value)

    assert await gathered(3) == 6
    assert list(yielding(3)) == [0, 2, 4]


def test_on_init_runs_once_and_its_state_is_in_every_step() -> None:
    loads: list[str] = []

    def load() -> dict[str, int]:
        loads.append("load")
        return {"bias": 10}

    @step
    def biased(x: int) -> int:
        return x + get_context().pipeline_state["bias"]

    @pipeline(on_init=load)
    def served(x: int) -> int:
        return biased(x)

    assert (served(1), served(2)) == (11, 12)
    assert loads == ["load"]


def test_capture_is_typed_and_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="flush_on_step_end"):
        Capture(flush_on_step_end=True)  # type: ignore[call-arg]
    with pytest.raises(DefinitionError, match=r"Capture\(logs=…\) must be True or False, not 'yes'"):
        Capture(logs="yes")  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="capture must be a Capture"):
        pipeline(capture={"logs": False})  # type: ignore[call-overload]


def test_memory_only_is_ignored_outside_serving_with_a_warning() -> None:
    @pipeline(capture=Capture(memory_only=True))
    def served(x: int) -> int:
        return double(x)

    with pytest.warns(UserWarning, match=r"memory_only=True.* ignored outside serving"):
        assert served(2) == 4
