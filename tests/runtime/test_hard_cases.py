"""What real code does to a runtime: bad text, bursts, groups, stuck threads, codes that exit, values without JSON."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from pipeserve import Capture, InvocationError, Pipeline, emit, get_context, log_metadata, pipeline, progress, step
from pipeserve.errors import DrainingError, NotFoundError
from pipeserve.events import EventType, event_type_of
from pipeserve.jobs import JobStatus
from pipeserve.runtime.inline import InlineRuns
from pipeserve.runtime.inline_run import InlineRun
from pipeserve.runtime.memory import MemoryStore
from pipeserve.runtime.ports import LogEntry
from pipeserve.runtime.realtime import RealtimeRuntime, RunRequest
from pipeserve.settings import RuntimeSettings
from pipeserve.testing import TestRun, run_pipeline_async


@asynccontextmanager
async def inline_runs(served: Pipeline[..., Any], **options: Any) -> AsyncIterator[tuple[InlineRuns, MemoryStore]]:
    settings = RuntimeSettings.from_environment(**options)
    store = MemoryStore(event_log_max=100_000)
    async with (
        RealtimeRuntime(served.definition, settings) as runtime,
        InlineRuns(runtime, store.ledger, served.definition, "deployment", "owner", settings) as runs,
    ):
        yield runs, store


def start(runs: InlineRuns, timeout: float | None = None, **parameters: Any) -> InlineRun:
    bound = runs.definition.parameters.validate(parameters)
    return runs.start(bound, raw_parameters=b"{}", timeout=timeout)


async def recorded(runs: InlineRuns, store: MemoryStore, inline: InlineRun) -> list[str]:
    """The event types of the run's log in the store, once it is there."""
    await inline.wait()
    async with asyncio.timeout(10):
        while runs.find(inline.job_id) is not None:  # noqa: ASYNC110 - nobody is told when the background has written
            await asyncio.sleep(0.005)
    entries = await store.log.read(inline.job_id, limit=1_000_000)
    assert [entry.seq for entry in entries if isinstance(entry, LogEntry)] == list(range(1, len(entries) + 1))
    return [event_type_of(entry.body) for entry in entries if isinstance(entry, LogEntry)]


def served(function: Any, **options: Any) -> Pipeline[..., Any]:
    """A static pipeline of one step without parameters."""
    made: Any = step(function)
    if asyncio.iscoroutinefunction(function):

        async def awaits() -> Any:
            return await made()

        return pipeline(**options)(awaits)

    def calls() -> Any:
        return made()

    return pipeline(**options)(calls)


async def run(function: Any, **options: Any) -> TestRun:
    return await run_pipeline_async(served(function), **options)


# ---- text


async def test_text_that_is_no_utf8_spoils_neither_its_run_nor_its_neighbours() -> None:
    @step
    def talks(words: str) -> str:
        logging.getLogger("names").warning("can't open %s", words)
        print(words)
        progress(0.5, words)
        if words == "raise \udcff":
            raise ValueError(words)
        return "done"

    @pipeline
    def talking(words: str) -> str:
        return talks(words)

    async with inline_runs(talking) as (runs, store):
        # Validation would refuse a surrogate; a file name reaches a step without it.
        bound = [talking.definition.parameters.validate({"words": "good"}) for _ in range(6)]
        for index, words in enumerate(["bad \udcff", "raise \udcff"]):
            object.__setattr__(bound[index], "values", {"words": words})
        started = [runs.start(parameters, raw_parameters=b"{}") for parameters in bound]
        ends = [(await recorded(runs, store, inline))[-1] for inline in started]
    assert ends == ["pipeline_completed", "pipeline_failed", *["pipeline_completed"] * 4]


async def test_an_exception_whose_message_fails_is_still_a_failed_step() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise self

    def raises() -> None:
        raise Unspeakable

    failed = await run(raises)
    assert failed.error is not None
    assert failed.error.detail == "step 'raises' failed: Unspeakable: (its message can't be shown)"
    assert failed.events[-2].event_type is EventType.STEP_FAILED


async def test_a_carriage_return_ends_a_printed_line_and_threads_do_not_mix() -> None:
    async def prints() -> None:
        print("10 %\r20 %\r", end="")

        def spell(word: str) -> None:
            for letter in word:
                print(letter, end="")
                time.sleep(0.0005)
            print()

        await asyncio.gather(asyncio.to_thread(spell, "abcdef"), asyncio.to_thread(spell, "uvwxyz"))
        print("the end", end="")

    lines = [event.message for event in (await run(prints)).events if event.event_type is EventType.LOG]
    assert lines[:2] == ["10 %", "20 %"]
    assert sorted(lines[2:4], key=str) == ["abcdef", "uvwxyz"]
    assert lines[4:] == ["the end"]


# ---- values


async def test_values_without_a_json_form_flow_between_steps_with_or_without_followers() -> None:
    @step
    def objects() -> Iterator[object]:
        for _ in range(3):
            yield {object()}
        emit(object())
        log_metadata({"fine": 1, "opaque": object()})

    @step
    def count(values: list[object]) -> int:
        return len(values)

    def counting() -> int:
        return count(objects())

    for capture in (Capture(), Capture(memory_only=True), Capture(metadata=False)):
        ended = await run_pipeline_async(pipeline(capture=capture)(counting))
        assert ended.outputs == {"output": 3}
    told = [event.data for event in ended.events if event.event_type is EventType.OUTPUT]
    assert told[0]["value"] is None
    assert told[0]["not_json"] == {"value": "object"}


async def test_a_default_that_a_step_changes_is_not_shared_between_requests() -> None:
    @dataclass
    class Seen:
        values: list[int]

    @step
    def note(x: int, seen: Seen = Seen([])) -> int:  # noqa: B008 - the trap itself
        seen.values.append(x)
        return len(seen.values)

    @pipeline
    def noting(x: int) -> int:
        return note(x)

    async with inline_runs(noting) as (runs, _):
        assert [(await start(runs, x=value).wait()).outputs for value in range(3)] == [{"output": 1}] * 3


# ---- events


async def test_a_burst_of_events_loses_none_and_repeats_none() -> None:
    def many() -> Iterator[int]:
        yield from range(25_000)

    async with inline_runs(served(many)) as (runs, store):
        inline = start(runs)
        types = await recorded(runs, store, inline)
        entries = await store.log.read(inline.job_id, limit=1_000_000)
    assert types.count("output") == 25_000
    assert types[0] == "pipeline_started"
    outputs = [entry.body for entry in entries if isinstance(entry, LogEntry) and b'"output"' in entry.body[:30]]
    assert all(b'"index":%d}' % index in body for index, body in enumerate(outputs))


# ---- stopping


@pytest.mark.parametrize("cause", ["cancel", "another branch"])
async def test_a_thread_that_ignores_a_stop_holds_its_run_no_longer_than_the_timeout(cause: str) -> None:
    release = threading.Event()
    started = threading.Event()

    @step
    def stuck() -> int:
        started.set()
        release.wait(20)
        return 1

    @step
    def fails() -> int:
        started.wait(5)
        if cause == "another branch":
            raise ValueError("broken")
        return 1

    @pipeline
    def both() -> list[int]:
        return [stuck(), fails()]

    async with RealtimeRuntime(both.definition, RuntimeSettings.from_environment(timeout_grace=0.05)) as runtime:
        bound = both.definition.parameters.validate({})
        running = runtime.start(RunRequest("job", 1, bound, "run", timeout=0.3), None)
        await asyncio.to_thread(started.wait)
        if cause == "cancel":
            running.cancel()
        result = await asyncio.wait_for(running.wait(), 5)
        release.set()
    assert result.status is (JobStatus.CANCELED if cause == "cancel" else JobStatus.FAILED)


async def test_abandoned_threads_do_not_use_up_the_pool() -> None:
    release = threading.Event()

    @step
    def perhaps(stuck: bool) -> int:
        if stuck:
            release.wait(20)
        return 1

    @pipeline
    def hanging(stuck: bool) -> int:
        return perhaps(stuck)

    async with inline_runs(hanging, max_concurrency=1, timeout_grace=0.0) as (runs, _):
        for _ in range(6):  # more than the pool has threads
            assert (await start(runs, timeout=0.05, stuck=True).wait()).status is JobStatus.TIMED_OUT
        assert (await start(runs, timeout=5, stuck=False).wait()).status is JobStatus.COMPLETED
        release.set()


async def test_a_generators_finally_belongs_to_the_run() -> None:
    closed = threading.Event()
    started = asyncio.Event()

    async def streams() -> AsyncIterator[int]:
        try:
            while True:
                started.set()
                await asyncio.sleep(0.001)
                yield 1
        finally:
            await asyncio.sleep(0.05)
            closed.set()

    stream = step(streams)

    @pipeline
    async def streaming() -> Any:
        return await stream()

    async with inline_runs(streaming) as (runs, _):
        inline = start(runs)
        await started.wait()
        inline.run.cancel()
        assert (await inline.wait()).status is JobStatus.CANCELED
        assert closed.is_set()


async def test_a_stopping_process_ends_its_runs_as_draining_and_records_them() -> None:
    started = asyncio.Event()

    async def waits() -> None:
        started.set()
        await asyncio.sleep(30)

    waiting = served(waits)
    async with inline_runs(waiting) as (runs, store):
        inline = start(runs)
        await started.wait()
        await runs.interrupt()
        result = await inline.wait()
        assert (await recorded(runs, store, inline))[-1] == "pipeline_failed"
        with pytest.raises(DrainingError):
            start(runs)
    assert result.error is not None
    assert (result.status, result.error.code, result.error.status) == (JobStatus.FAILED, "draining", 503)


async def test_a_process_that_just_ends_records_its_runs_too() -> None:
    started = asyncio.Event()

    async def waits() -> None:
        started.set()
        await asyncio.sleep(30)

    async with inline_runs(served(waits)) as (runs, store):
        inline = start(runs)
        await started.wait()
    job = await store.ledger.get(inline.job_id)
    assert job is not None
    assert job.status is JobStatus.FAILED


async def test_a_failing_run_is_not_shown_as_canceling() -> None:
    failed = asyncio.Event()

    @step
    async def fails() -> int:
        failed.set()
        raise ValueError("broken")

    @step
    async def slow_to_stop() -> int:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.05)
        return 1

    @pipeline
    async def both() -> list[int]:
        return [await fails(), await slow_to_stop()]

    async with inline_runs(both) as (runs, _):
        inline = start(runs)
        await failed.wait()
        await asyncio.sleep(0)
        assert inline.view().status is JobStatus.RUNNING
        assert (await inline.wait()).status is JobStatus.FAILED


# ---- dynamic bodies


async def test_exit_in_an_async_step_of_a_dynamic_body_fails_the_run_and_not_the_process() -> None:
    @step
    async def leaves() -> int:
        raise SystemExit(3)

    @pipeline(dynamic=True)
    async def in_a_group() -> int:
        return sum(await asyncio.gather(leaves(), leaves()))

    @pipeline(dynamic=True)
    def in_a_thread() -> int:
        return leaves()  # type: ignore[return-value]

    for dynamic in (in_a_group, in_a_thread):
        error = (await run_pipeline_async(dynamic)).error
        assert error is not None
        assert "SystemExit: 3" in error.detail


async def test_a_body_may_give_a_step_up_as_plain_python_would() -> None:
    @step
    async def slow() -> int:
        await asyncio.sleep(30)
        return 1

    @pipeline(dynamic=True)
    async def impatient() -> str:
        try:
            await asyncio.wait_for(slow(), 0.02)
        except TimeoutError:
            return "went on"
        return "waited"

    ended = await run_pipeline_async(impatient)
    assert ended.outputs == {"output": "went on"}
    assert not [event for event in ended.events if event.event_type is EventType.STEP_FAILED]


async def test_a_task_group_does_not_hide_a_steps_own_answer() -> None:
    @step
    async def find(found: bool) -> int:
        if not found:
            raise InvocationError(status=404, code="no_document", detail="not here")
        await asyncio.sleep(30)
        return 1

    @pipeline(dynamic=True)
    async def grouped() -> int:
        async with asyncio.TaskGroup() as group:
            group.create_task(find(True))
            group.create_task(find(False))
        return 1

    error = (await run_pipeline_async(grouped)).error
    assert error is not None
    assert (error.status, error.code, error.step) == (404, "no_document", "find_2")


async def test_a_step_in_a_thread_of_the_body_belongs_to_the_run() -> None:
    started, release = threading.Event(), threading.Event()

    @step
    def works() -> str:
        started.set()
        release.wait(10)
        return get_context().job_id

    @pipeline(dynamic=True)
    async def threaded() -> str:
        return await asyncio.to_thread(works)

    async with inline_runs(threaded) as (runs, _):
        inline = start(runs)
        await asyncio.to_thread(started.wait)
        inline.run.cancel()
        waiter = asyncio.create_task(inline.wait())
        done, _ = await asyncio.wait([waiter], timeout=0.05)
        assert not done, "the step still works"
        release.set()
        assert (await waiter).status is JobStatus.CANCELED


async def test_a_problem_met_elsewhere_is_not_answered_as_ones_own() -> None:
    def calls_another_service() -> None:
        raise NotFoundError("no job there", job_id="theirs")

    ended = await run(calls_another_service)
    assert ended.error is not None
    assert (ended.error.code, ended.error.status, ended.error.job_id) == ("step_failed", 500, ended.job_id)


@pytest.mark.parametrize(
    "wrong",
    [{"status": 404.5}, {"status": 200}, {"detail": ValueError("x")}, {"code": None}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_an_invocation_error_of_the_wrong_kind_is_refused_where_it_is_raised(wrong: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match="InvocationError"):
        InvocationError(**{"status": 404, "code": "x", "detail": "y", **wrong})
