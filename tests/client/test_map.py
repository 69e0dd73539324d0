"""One call for each of many inputs, against a real service: order, concurrency, errors, and leaving early."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.api.harness import Served, serving, wait_until

from pipeserve import InvocationError, pipeline, step
from pipeserve.client import AsyncClient, Client, Result
from pipeserve.errors import PipeserveError

FAILING = 5


class Room:
    """How many calls are in the step at once; they leave when the door is open."""

    def __init__(self) -> None:
        self.inside = self.most = self.canceled = 0
        self.began: list[int] = []
        self.open = asyncio.Event()


ROOM = Room()


@step
async def wait(number: int) -> int:
    ROOM.began.append(number)
    ROOM.inside += 1
    ROOM.most = max(ROOM.most, ROOM.inside)
    try:
        await ROOM.open.wait()
        # The later ones end first.
        await asyncio.sleep(0.05 / (1 + number))
    except asyncio.CancelledError:
        ROOM.canceled += 1
        raise
    finally:
        ROOM.inside -= 1
    if number == FAILING:
        raise InvocationError(status=409, code="five", detail="five is no number")
    return number * 10


@pipeline
async def tens(number: int) -> int:
    return await wait(number)


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setitem(globals(), "ROOM", Room())
    async with serving(tens) as service:
        yield service


def inputs(count: int, taken: list[int] | None = None) -> Iterator[dict[str, Any]]:
    for number in range(count):
        if taken is not None:
            taken.append(number)
        yield {"number": number}


async def inputs_as_they_come(count: int) -> AsyncIterator[dict[str, Any]]:
    for each in inputs(count):
        await asyncio.sleep(0)
        yield each


async def mapped(kind: str, served: Served, given: Any, **options: Any) -> list[Any]:
    if kind == "blocking":
        with Client(served.url) as client:
            return await asyncio.to_thread(lambda: list(client.map(given, **options)))
    async with AsyncClient(served.url) as client:
        return [each async for each in client.map(given, **options)]


both = pytest.mark.parametrize("kind", ["blocking", "async"])


@both
async def test_results_come_in_order_from_as_many_calls_at_once_as_may_be(served: Served, kind: str) -> None:
    taken: list[int] = []
    calling = asyncio.create_task(mapped(kind, served, inputs(FAILING, taken), concurrency=2, into=int))
    await wait_until(lambda: ROOM.inside == 2, "two calls are open")
    await wait_until(lambda: len(taken) == 4, "and two more are taken")
    ROOM.open.set()
    results = await calling
    assert [result.outputs for result in results] == [0, 10, 20, 30, 40]
    assert ROOM.most == 2


async def test_inputs_may_come_one_by_one(served: Served) -> None:
    ROOM.open.set()
    results = await mapped("async", served, inputs_as_they_come(FAILING))
    assert [result.outputs["output"] for result in results] == [0, 10, 20, 30, 40]


@both
async def test_the_first_error_is_raised_in_its_place(served: Served, kind: str) -> None:
    ROOM.open.set()
    seen: list[int] = []

    def collect() -> None:
        with Client(served.url) as client:
            for result in client.map(inputs(40), into=int):
                seen.append(result.outputs)

    async def collect_on_the_loop() -> None:
        async with AsyncClient(served.url) as client, contextlib.aclosing(client.map(inputs(40), into=int)) as results:
            async for result in results:
                seen.append(result.outputs)

    with pytest.raises(InvocationError, match="five is no number"):
        await (asyncio.to_thread(collect) if kind == "blocking" else collect_on_the_loop())
    assert seen == [0, 10, 20, 30, 40]
    assert max(ROOM.began) < 39, "the rest was not called"


@both
async def test_errors_may_stand_in_the_results_places(served: Served, kind: str) -> None:
    ROOM.open.set()
    results = await mapped(kind, served, inputs(FAILING + 2), return_exceptions=True, into=int)
    assert [result.outputs for result in results if isinstance(result, Result)] == [0, 10, 20, 30, 40, 60]
    assert isinstance(results[FAILING], PipeserveError)


async def test_leaving_cancels_what_is_open(served: Served) -> None:
    async with AsyncClient(served.url) as client:
        leaving = asyncio.create_task(anext(client.map(inputs(40), concurrency=3)))
        await wait_until(lambda: ROOM.inside == 3, "three calls are open")
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await wait_until(lambda: ROOM.inside == 0, "none is")
    assert ROOM.canceled == 3
    assert len(ROOM.began) == 3


@both
async def test_the_same_map_with_a_key_runs_nothing_twice(served: Served, kind: str) -> None:
    ROOM.open.set()

    async def ids() -> list[str]:
        if kind == "blocking":
            with Client(served.url) as client:
                keyed = client.with_options(idempotency_key="nightly")
                return await asyncio.to_thread(lambda: [result.job_id for result in keyed.map(inputs(4))])
        async with AsyncClient(served.url) as client:
            return [result.job_id async for result in client.with_options(idempotency_key="nightly").map(inputs(4))]

    first = await ids()
    assert await ids() == first
    assert len(set(first)) == len(ROOM.began) == 4


def test_no_calls_at_a_time_are_refused_at_once() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(ValueError, match="concurrency"):
        client.map([], concurrency=0)
