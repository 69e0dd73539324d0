"""Streaming between steps: a step reads what another yields while that one still runs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.api.harness import serving
from tests.api.worker import working
from tests.runtime.test_executor import runtime_of, start

from pipeserve import Cache, Pipeline, Retry, Stream, Streamed, emit, pipeline, step
from pipeserve.events import Event, EventType
from pipeserve.jobs import JobStatus
from pipeserve.runtime.checkpoints import JobCheckpoints
from pipeserve.runtime.live_stream import LiveStream
from pipeserve.runtime.memory import MemoryStore
from pipeserve.runtime.run import RunRequest, RunResult, RunStopped
from pipeserve.testing import TestRun, run_pipeline, run_pipeline_async

COUNT = 3


class Turns:
    """Holds a producer after each of its yields until the value was read. Without a live reader it gives up."""

    def __init__(self) -> None:
        self._read = [threading.Event() for _ in range(COUNT)]

    def read(self, index: int) -> None:
        self._read[index].set()

    def wait(self, index: int) -> None:
        assert self._read[index].wait(5), f"nobody has read value {index} yet"


def producer(turns: Turns, kind: str) -> Any:
    """A step that yields 0, 1, 2 in turn with its reader."""
    if kind == "sync":

        @step
        def counted() -> Iterator[int]:
            for index in range(COUNT):
                yield index
                turns.wait(index)

        return counted

    @step(name="counted")
    async def awaited() -> AsyncIterator[int]:
        for index in range(COUNT):
            yield index
            await asyncio.to_thread(turns.wait, index)

    return awaited


def consumer(turns: Turns, kind: str) -> Any:
    """A step that reads in turn with the producer, and returns what it has read."""
    if kind == "sync":

        @step
        def gathered(values: Stream[int]) -> list[int]:
            found: list[int] = []
            for value in values:
                found.append(value)
                turns.read(value)
            return found

        return gathered

    @step(name="gathered")
    async def awaited(values: Stream[int]) -> list[int]:
        found: list[int] = []
        async for value in values:
            found.append(value)
            turns.read(value)
        return found

    return awaited


def one_into_other(produce: Any, consume: Any) -> Pipeline[..., Any]:
    @pipeline
    def streaming() -> Any:
        return consume(produce())

    return streaming


@step(executor="process")
def in_a_process(marker: str) -> Iterator[int]:
    """Yields 1 when whoever has read 0 says so by a file: events of this process are not those of another."""
    yield 0
    deadline = time.monotonic() + 10
    while not Path(marker).exists():
        assert time.monotonic() < deadline, "nobody has read 0 yet"
        time.sleep(0.005)
    emit("beside")
    yield 1


@step(executor="process")
def total_in_a_process(values: Stream[int]) -> int:
    return sum(values)


class Recorded:
    """The checkpoints of one job, in this process."""

    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}

    async def load(self, job_id: str) -> dict[str, bytes]:
        return dict(self._records)

    async def save(self, job_id: str, attempt: int, name: str, record: bytes) -> None:
        self._records[name] = record


def of_type(run: TestRun, event_type: EventType) -> list[Event]:
    return [event for event in run.events if event.event_type is event_type]


async def run_once(served: Pipeline[..., Any]) -> RunResult:
    """With the records of its steps."""
    async with runtime_of(served) as runtime:
        return await start(runtime).wait()


def statuses(result: RunResult) -> dict[str, str]:
    return {record.name: record.status for record in result.steps}


# ---- side by side


@pytest.mark.parametrize("produces", ["sync", "async"])
@pytest.mark.parametrize("consumes", ["sync", "async"])
async def test_a_value_is_read_before_the_next_is_yielded(produces: str, consumes: str) -> None:
    turns = Turns()
    run = await run_pipeline_async(one_into_other(producer(turns, produces), consumer(turns, consumes)))
    assert run.outputs == {"output": [0, 1, 2]}
    started = [event.step_name for event in of_type(run, EventType.STEP_STARTED)]
    assert started == ["counted", "gathered"], "a reader begins after what it reads"


async def test_several_steps_read_one_stream_and_a_list_of_it_waits() -> None:
    others = Turns()

    class AllTurns(Turns):
        def wait(self, index: int) -> None:
            super().wait(index)
            others.wait(index)

    turns = AllTurns()
    count, gather, gather_later = producer(turns, "sync"), consumer(turns, "sync"), consumer(others, "async")

    @step
    def total(values: list[int]) -> int:
        return sum(values)

    @pipeline
    def streaming() -> Any:
        values = count()
        return [gather(values), gather_later.with_name("later")(values), total(values)]

    run = await run_pipeline_async(streaming)
    assert run.outputs == {"output": [[0, 1, 2], [0, 1, 2], 3]}
    told = [(event.event_type, event.step_name) for event in run.events]
    assert told.index((EventType.STEP_STARTED, "total")) > told.index((EventType.STEP_COMPLETED, "counted"))


async def test_a_stream_can_be_read_again_and_left_early() -> None:
    turns = Turns()
    for index in range(COUNT):
        turns.read(index)

    @step
    def twice(values: Stream[int]) -> list[int]:
        first = next(iter(values))
        return [first, *values, *values]

    @step
    async def first_of(values: Stream[int]) -> int:
        async for value in values:
            return value
        return -1

    count = producer(turns, "async")

    @pipeline
    def streaming() -> Any:
        values = count()
        return {"twice": twice(values), "first": first_of(values), "all": values}

    run = await run_pipeline_async(streaming)
    assert run.outputs == {"twice": [0, 0, 1, 2, 0, 1, 2], "first": 0, "all": [0, 1, 2]}


async def test_a_reader_that_has_ended_does_not_stop_who_yields() -> None:
    ended = threading.Event()

    @step
    def counted() -> Iterator[int]:
        yield 0
        assert ended.wait(5)
        yield 1

    @step
    def first_of(values: Stream[int]) -> int:
        return next(iter(values))

    @step
    def tell(value: int) -> int:
        ended.set()
        return value

    @pipeline
    def streaming() -> Any:
        values = counted()
        return {"first": tell(first_of(values)), "all": values}

    assert (await run_pipeline_async(streaming)).outputs == {"first": 0, "all": [0, 1]}


async def test_the_yields_of_a_step_in_a_process_of_its_own_are_read_live(tmp_path: Path) -> None:
    @step
    def gathered(values: Stream[int], marker: str) -> list[int]:
        found: list[int] = []
        for value in values:
            found.append(value)
            Path(marker).touch()
        return found

    @pipeline
    def streaming(marker: str) -> Any:
        values: Any = in_a_process(marker)
        return {"live": gathered(values, marker), "whole": total_in_a_process(values), "all": values}

    run = await run_pipeline_async(streaming, {"marker": str(tmp_path / "read")})
    assert run.outputs == {"live": [0, 1], "whole": 1, "all": [0, 1]}


@pytest.mark.parametrize("kind", ["sync", "async", "mixed"])
async def test_a_chain_of_streams_is_live_from_end_to_end_in_the_smallest_pool(kind: str) -> None:
    turns = Turns()
    kinds = ["sync" if kind == "sync" or (kind == "mixed" and index % 2) else "async" for index in range(6)]

    @step
    def passed(values: Stream[int]) -> Iterator[int]:
        yield from values

    @step
    async def awaited(values: Stream[int]) -> AsyncIterator[int]:
        async for value in values:
            yield value

    count, gather = producer(turns, "sync"), consumer(turns, "sync")

    @pipeline
    def chained() -> Any:
        values: Any = count()
        for each in kinds:
            values = passed(values) if each == "sync" else awaited(values)
        return gather(values)

    async with runtime_of(chained, max_concurrency=1) as runtime:
        assert (await start(runtime).wait()).outputs == {"output": [0, 1, 2]}


async def test_more_streams_than_threads_get_through() -> None:
    @step
    def counted() -> Iterator[int]:
        yield from range(50)

    @step
    def passed(values: Stream[int]) -> Iterator[int]:
        yield from values

    @step
    def total(values: Stream[int]) -> int:
        return sum(values)

    @pipeline
    def chained() -> Any:
        values = counted()
        for _ in range(6):
            values = passed(values)
        return total(values)

    async with runtime_of(chained, max_concurrency=1) as runtime:
        runs = [start(runtime) for _ in range(20)]  # 160 steps that each hold a thread, in a pool of 11
        results = [await run.wait() for run in runs]
    assert [result.outputs for result in results] == [{"output": sum(range(50))}] * 20


async def test_a_reader_with_other_inputs_waits_for_these() -> None:
    yielded = threading.Event()

    @step
    def counted() -> Iterator[int]:
        yield 1
        yielded.set()
        yield 2

    @step
    def factor() -> int:
        assert yielded.wait(5)
        return 10

    @step
    def scaled(values: Stream[int], by: int) -> list[int]:
        return [value * by for value in values]

    @pipeline
    def streaming() -> Any:
        return scaled(counted(), factor())

    assert (await run_pipeline_async(streaming)).outputs == {"output": [10, 20]}


async def test_after_waits_for_the_end_of_the_stream() -> None:
    order: list[str] = []

    @step
    def counted() -> Iterator[int]:
        yield 1
        order.append("yielded")

    @step
    def total(values: Stream[int]) -> int:
        order.append("started")
        return sum(values)

    @pipeline
    def streaming() -> Any:
        values = counted()
        return total.after(values)(values)

    assert (await run_pipeline_async(streaming)).outputs == {"output": 1}
    assert order == ["yielded", "started"]


# ---- what else a stream can be made of


def test_a_list_a_parameter_and_a_default_are_streams_too() -> None:
    @step
    def listed() -> list[int]:
        return [1, 2]

    @step
    def joined(one: Stream[int], two: Stream[int], more: Stream[int] = Streamed()) -> list[int]:  # noqa: B008
        return [*one, *two, *more]

    @step
    async def joined_later(one: Stream[int], two: Stream[int]) -> list[int]:
        return [value async for value in one] + [value async for value in two]

    @pipeline
    def streaming(given: Stream[int]) -> Any:
        here: Any = listed()
        return {"sync": joined(given, here), "async": joined_later(here, given)}

    assert run_pipeline(streaming, given=[0]).outputs == {"sync": [0, 1, 2], "async": [1, 2, 0]}
    run = run_pipeline(streaming, {"given": [0], "joined.more": [5]})
    assert run.outputs["sync"] == [0, 1, 2, 5]
    assert streaming.definition.input_schema()["properties"]["given"]["type"] == "array"


async def test_streams_in_dynamic_bodies_and_outside_a_service() -> None:
    @step
    def words(text: str) -> Iterator[str]:
        yield from text.split()

    @step
    async def spoken(text: str) -> AsyncIterator[str]:
        for word in text.split():
            yield word

    @step
    def joined(values: Stream[str]) -> str:
        return "+".join(values)

    @step
    async def joined_later(values: Stream[str]) -> str:
        return "+".join([value async for value in values])

    @pipeline(dynamic=True)
    def threaded(text: str) -> list[str]:
        return [joined(words(text)), joined(text.split())]  # type: ignore[arg-type]

    @pipeline(dynamic=True)
    async def looped(text: str) -> list[str]:
        return [joined(await spoken(text)), await joined_later(words(text)), await joined_later(await spoken(text))]

    @pipeline
    async def static(text: str) -> list[str]:
        return [joined(await spoken(text)), await joined_later(words(text))]

    for served, count in ((threaded, 2), (looped, 3), (static, 2)):
        assert (await run_pipeline_async(served, {"text": "a b"})).outputs == {"output": ["a+b"] * count}
    assert threaded("a b") == ["a+b", "a+b"]
    assert await looped("a b") == ["a+b"] * 3
    assert await static("a b") == ["a+b"] * 2
    assert joined(Streamed(["a", "b"])) == "a+b"
    assert await joined_later(Streamed(["a", "b"])) == "a+b"


async def test_a_cached_reader_gets_the_whole_list_which_is_part_of_its_key() -> None:
    calls: list[list[int]] = []

    @step
    def counted(n: int) -> Iterator[int]:
        yield from range(n)

    @step(cache=True)
    def total(values: Stream[int]) -> int:
        calls.append(list(values))
        return sum(calls[-1])

    @pipeline
    def streaming(n: int) -> int:
        return total(counted(n))

    async with runtime_of(streaming) as runtime:
        outputs = [(await start(runtime, n=n).wait()).outputs for n in (3, 3, 4)]
    assert outputs == [{"output": 3}, {"output": 3}, {"output": 6}]
    assert calls == [[0, 1, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_cached_producer_hands_its_reader_all_at_once(kind: str) -> None:
    calls: list[int] = []

    @step(cache=Cache())
    def counted(n: int) -> Iterator[int]:
        calls.append(n)
        yield from range(n)

    @step(cache=Cache())
    async def awaited(n: int) -> AsyncIterator[int]:
        calls.append(n)
        for value in range(n):
            yield value

    @step
    def total(values: Stream[int]) -> int:
        return sum(values)

    @pipeline
    def streaming(n: int) -> Any:
        values: Any = counted(n) if kind == "sync" else awaited(n)
        return {"total": total(values), "all": values}

    async with runtime_of(streaming) as runtime:
        results = [await start(runtime, n=3).wait() for _ in range(2)]
    assert [result.outputs for result in results] == [{"total": 3, "all": [0, 1, 2]}] * 2
    assert [record.cached for record in results[1].steps] == [True, False]
    assert calls == [3]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_runs_that_share_one_call_of_a_producer_each_read_all_of_it(kind: str) -> None:
    turns = Turns()
    calls: list[int] = []

    @step(cache=True)
    def counted() -> Iterator[int]:
        calls.append(1)
        for index in range(COUNT):
            yield index
            turns.wait(index)  # only the run that computes has a reader that reads meanwhile

    @step(cache=True)
    async def awaited() -> AsyncIterator[int]:
        calls.append(1)
        for index in range(COUNT):
            yield index
            await asyncio.to_thread(turns.wait, index)

    async with runtime_of(one_into_other(counted if kind == "sync" else awaited, consumer(turns, kind))) as runtime:
        results = [await run.wait() for run in [start(runtime) for _ in range(3)]]
    assert [result.outputs for result in results] == [{"output": [0, 1, 2]}] * 3
    assert calls == [1]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_another_attempt_reads_what_the_first_has_recorded(kind: str) -> None:
    calls: list[int] = []

    @step(checkpoint=True)
    def counted() -> Iterator[int]:
        calls.append(1)
        yield from range(COUNT)

    @step(checkpoint=True)
    async def awaited() -> AsyncIterator[int]:
        calls.append(1)
        for index in range(COUNT):
            yield index

    @step
    def gathered(values: Stream[int]) -> list[int]:
        return list(values)

    store = Recorded()
    served = one_into_other(counted if kind == "sync" else awaited, gathered)
    async with runtime_of(served) as runtime:
        for attempt in (1, 2):
            checkpoints = await JobCheckpoints.load(store, "job", attempt, runtime.codec)
            bound = served.definition.parameters.validate({})
            run = runtime.start(RunRequest("job", attempt, bound, "run", checkpoints=checkpoints), None)
            result = await run.wait()
            assert result.outputs == {"output": [0, 1, 2]}
    assert [record.resumed for record in result.steps] == [True, False]
    assert calls == [1]


async def test_a_producer_that_is_called_again_yields_to_its_reader_once() -> None:
    calls: list[int] = []

    @step(retry=Retry(attempts=3, backoff=0))
    def counted() -> Iterator[int]:
        calls.append(len(calls))
        if len(calls) < 3:
            raise ValueError("not yet")
        yield from range(COUNT)

    @step
    def gathered(values: Stream[int]) -> list[int]:
        return list(values)

    run = await run_pipeline_async(one_into_other(counted, gathered))
    assert run.outputs == {"output": [0, 1, 2]}
    assert len(calls) == 3


async def test_what_a_step_emits_is_no_yield() -> None:
    @step
    def counted() -> Iterator[int]:
        emit("beside")
        yield 1

    @step
    def gathered(values: Stream[int]) -> list[int]:
        return list(values)

    run = await run_pipeline_async(one_into_other(counted, gathered))
    assert run.outputs == {"output": [1]}
    assert [event.data["value"] for event in of_type(run, EventType.OUTPUT)] == ["beside", 1]


# ---- failing and stopping


@pytest.mark.parametrize("produces", ["sync", "async"])
@pytest.mark.parametrize("consumes", ["sync", "async"])
async def test_the_error_of_the_producer_is_the_runs_and_its_reader_is_canceled(produces: str, consumes: str) -> None:
    class RunsDry(Turns):
        def wait(self, index: int) -> None:
            super().wait(index)
            if index == 1:
                raise ValueError("ran dry")

    turns = RunsDry()
    served = one_into_other(producer(turns, produces), consumer(turns, consumes))
    result = await run_once(served)
    assert result.error is not None
    assert (result.error.step, result.error.detail) == ("counted", "step 'counted' failed: ValueError: ran dry")
    assert statuses(result) == {"counted": "failed", "gathered": "canceled"}


async def test_a_failing_reader_stops_the_producer() -> None:
    @step
    def counted() -> Iterator[int]:
        yield from range(1_000_000_000)

    @step
    def choosy(values: Stream[int]) -> int:
        for value in values:
            if value == 2:
                raise ValueError("enough")
        return 0

    served = one_into_other(counted, choosy)
    assert statuses(await run_once(served)) == {"counted": "canceled", "choosy": "failed"}


@pytest.mark.parametrize("consumes", ["sync", "async"])
async def test_a_cancel_reaches_who_waits_for_a_value(consumes: str) -> None:
    turns = Turns()
    release = threading.Event()

    @step
    def counted() -> Iterator[int]:
        yield 0
        release.wait(10)  # it ignores the cancel

    async with runtime_of(one_into_other(counted, consumer(turns, consumes))) as runtime:
        run = start(runtime)
        await asyncio.to_thread(turns.wait, 0)
        run.cancel()
        gathered = run.steps[1]
        async with asyncio.timeout(5):
            while gathered.status == "running":  # noqa: ASYNC110 - nobody is told when one step has stopped
                await asyncio.sleep(0.005)
        release.set()
        assert (await run.wait()).status is JobStatus.CANCELED
    assert gathered.status == "canceled"


async def test_a_plain_for_on_the_event_loop_is_refused_in_words() -> None:
    @step
    def counted() -> Iterator[int]:
        yield 0

    @step
    async def blocks(values: Stream[int]) -> list[int]:
        return list(values)

    error = (await run_pipeline_async(one_into_other(counted, blocks))).error
    assert error is not None
    assert error.step == "blocks"
    assert "Use `async for`" in error.detail


# ---- events


async def test_ten_thousand_yields_are_told_in_order_beside_their_reader() -> None:
    @step
    def counted() -> Iterator[int]:
        yield from range(10_000)

    @step
    def total(values: Stream[int]) -> int:
        return sum(values)

    told: list[dict[str, Any]] = []
    store = MemoryStore(event_log_max=100_000)
    async with serving(one_into_other(counted, total), backend=store) as service, working(service):
        job_id = await service.submit()
        page: dict[str, Any] = {"next": 0, "done": False}
        while not page["done"]:
            asked = {"after": page["next"], "wait": 5}
            page = (await service.http.get(f"/jobs/{job_id}/events", params=asked)).json()
            told += [event for event in page["events"] if event["event_type"] == "output"]
        job = (await service.http.get(f"/jobs/{job_id}")).json()
    assert [event["data"] for event in told] == [{"value": index, "index": index} for index in range(10_000)]
    assert job["outputs"] == {"output": sum(range(10_000))}


# ---- the stream itself


async def test_a_stream_is_read_from_any_thread_and_loop_and_shares_its_list() -> None:
    stream = LiveStream[int]("counted", threading.get_ident())

    async def read() -> list[int]:
        return [value async for value in stream]

    readers = [
        asyncio.create_task(asyncio.to_thread(list, stream)),
        asyncio.create_task(asyncio.to_thread(asyncio.run, read())),
        asyncio.create_task(read()),
    ]
    for value in range(100):
        stream.put(value)
        await asyncio.sleep(0)
    stream.close()
    assert await asyncio.gather(*readers) == [list(range(100))] * 3
    assert type(stream.values) is Streamed


async def test_an_async_reader_of_many_values_leaves_the_loop_to_others() -> None:
    stream = LiveStream[int]("counted", threading.get_ident())
    for value in range(1000):
        stream.put(value)
    stream.close()
    seen: list[int] = []

    async def read() -> None:
        async for value in stream:
            seen.append(value)

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert 0 < len(seen) < 1000
    await reader
    assert seen == list(range(1000))


async def test_a_stopped_stream_stops_its_readers() -> None:
    stream = LiveStream[int]("counted", threading.get_ident())
    stream.put(1)
    waiting = asyncio.create_task(asyncio.to_thread(list, stream))
    stream.stop()
    with pytest.raises(RunStopped):
        await waiting
    with pytest.raises(RunStopped):
        await anext(aiter(stream))
