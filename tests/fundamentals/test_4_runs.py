"""Chapter 4: a run reports what happens as numbered events, and ends in exactly one way."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from pipeserve import (
    Capture,
    InvocationError,
    Pipeline,
    Stream,
    emit,
    get_context,
    log_metadata,
    pipeline,
    progress,
    step,
)
from pipeserve.errors import StepFailedError
from pipeserve.events import Event, EventType
from pipeserve.testing import TestRun, run_pipeline


@step
def double(x: int) -> int:
    return 2 * x


@pipeline
def doubled_twice(x: int) -> int:
    return double(double(x))


def of_type(run: TestRun, event_type: EventType) -> list[Event]:
    return [event for event in run.events if event.event_type is event_type]


def served(function: Any, **options: Any) -> Pipeline[..., Any]:
    """A pipeline of one step."""
    made = step(function)

    def one_step(x: int) -> Any:
        return made(x)

    return pipeline(**options)(one_step)


def test_events_are_numbered_without_a_hole_and_end_with_the_outputs() -> None:
    run = run_pipeline(doubled_twice, x=3)
    assert [event.seq for event in run.events] == list(range(1, len(run.events) + 1))
    kinds = [event.event_type for event in run.events if event.event_type is not EventType.PROGRESS_UPDATE]
    assert kinds == [
        EventType.PIPELINE_STARTED,
        EventType.STEP_STARTED,
        EventType.STEP_COMPLETED,
        EventType.STEP_STARTED,
        EventType.STEP_COMPLETED,
        EventType.PIPELINE_COMPLETED,
    ]
    assert run.events[-1].data["outputs"] == {"output": 12}
    assert of_type(run, EventType.PROGRESS_UPDATE)[-1].data["percent"] == 100.0


def test_yields_of_sync_and_async_generators_are_output_events_with_an_index() -> None:
    def counted(x: int) -> Iterator[int]:
        yield from range(x)

    async def awaited(x: int) -> AsyncIterator[int]:
        for value in range(x):
            await asyncio.sleep(0)
            yield value

    for stream in (counted, awaited):
        run = run_pipeline(served(stream), x=3)
        assert [event.data for event in of_type(run, EventType.OUTPUT)] == [
            {"value": value, "index": value} for value in range(3)
        ]
        assert run.outputs == {"output": [0, 1, 2]}


def test_a_step_reads_what_another_yields_while_that_one_still_runs() -> None:
    answered = [threading.Event() for _ in range(2)]

    @step
    def asks(x: int) -> Iterator[int]:
        for number in range(x):
            yield number
            assert answered[number].wait(5)

    @step
    def answers(numbers: Stream[int]) -> list[str]:
        replies: list[str] = []
        for number in numbers:
            replies.append(f"read {number}")
            answered[number].set()
        return replies

    @pipeline
    def conversation(x: int) -> list[str]:
        return answers(asks(x))

    assert run_pipeline(conversation, x=2).outputs == {"output": ["read 0", "read 1"]}


def test_a_step_reports_progress_output_metadata_prints_and_logs() -> None:
    def talkative(x: int) -> int:
        progress(0.5, "half way")
        emit({"partial": x})
        log_metadata({"rows": x})
        print("first line\nsecond", "line")
        logging.getLogger("mine").warning("careful with %s", x)
        return x

    run = run_pipeline(served(talkative), x=1)
    assert of_type(run, EventType.PROGRESS_UPDATE)[0].message == "half way"
    assert of_type(run, EventType.OUTPUT)[0].data == {"value": {"partial": 1}, "index": 0}
    assert of_type(run, EventType.METADATA)[0].data == {"rows": 1}
    logs = [(event.level, event.message, event.data["logger"]) for event in of_type(run, EventType.LOG)]
    assert logs == [
        ("info", "first line", "print"),
        ("info", "second line", "print"),
        ("warning", "careful with 1", "mine"),
    ]
    assert {event.step_name for event in of_type(run, EventType.LOG)} == {"talkative"}


def test_switches_of_capture_leave_out_what_they_name_and_never_change_the_result() -> None:
    def talkative(x: int) -> int:
        print("a secret line")
        log_metadata({"rows": x})
        return x

    run = run_pipeline(served(talkative, capture=Capture(logs=False, metadata=False)), x=1)
    assert not of_type(run, EventType.LOG)
    assert not of_type(run, EventType.METADATA)
    assert run.outputs == {"output": 1}


def test_a_failed_step_is_named_and_its_traceback_stays_here(caplog: pytest.LogCaptureFixture) -> None:
    def broken(x: int) -> int:
        raise ValueError(f"no {x}")

    run = run_pipeline(served(broken), x=7)
    assert run.error is not None
    assert (run.status, run.error.code, run.error.status, run.error.step) == ("failed", "step_failed", 500, "broken")
    assert run.error.detail == "step 'broken' failed: ValueError: no 7"
    assert "raise ValueError" in caplog.text
    assert "raise ValueError" not in str(run.events)
    assert [event.event_type for event in run.events[-2:]] == [EventType.STEP_FAILED, EventType.PIPELINE_FAILED]
    with pytest.raises(StepFailedError):
        run.raise_for_status()


def test_an_invocation_error_answers_in_the_steps_own_words() -> None:
    def lookup(x: int) -> int:
        raise InvocationError(status=404, code="document_not_found", detail=f"no document {x}")

    error = run_pipeline(served(lookup), x=7).error
    assert error is not None
    assert (error.status, error.code, error.detail, error.step) == (
        404,
        "document_not_found",
        "no document 7",
        "lookup",
    )


def test_a_result_that_json_cannot_carry_names_step_output_and_type() -> None:
    def opaque(x: int) -> object:
        return {"deep": [object()]}

    error = run_pipeline(served(opaque), x=1).error
    assert error is not None
    assert error.code == "step_failed"
    assert (
        error.detail
        == "step 'opaque': output 'output' can't be answered: a value of type object can't be written as JSON"
    )


def test_a_run_past_its_timeout_ends_as_timed_out_even_if_its_thread_does_not() -> None:
    def stuck(x: int) -> int:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            time.sleep(0.01)
        return x

    run = run_pipeline(served(stuck), timeout=0.05, x=1)
    assert run.error is not None
    assert (run.status, run.error.code, run.error.status) == ("timed_out", "timed_out", 504)
    assert run.events[-1].event_type is EventType.PIPELINE_TIMED_OUT


def test_a_timeout_reaches_a_thread_at_its_next_checkpoint() -> None:
    stopped_at: list[int] = []

    def counts(x: int) -> int:
        try:
            for value in range(10_000):
                time.sleep(0.005)
                progress(value / 10_000)
                stopped_at[:] = [value]
        finally:
            stopped_at.append(-1)
        return x

    assert run_pipeline(served(counts), timeout=0.1, x=1).status == "timed_out"
    assert stopped_at[-1] == -1
    assert stopped_at[0] < 9_999


def test_a_steps_own_timeout_names_the_step() -> None:
    @step(timeout=0.05)
    async def slow(x: int) -> int:
        assert get_context().remaining() <= 0.05
        await asyncio.sleep(30)
        return x

    @pipeline
    async def bounded(x: int) -> int:
        return await slow(x)

    error = run_pipeline(bounded, x=1).error
    assert error is not None
    assert (error.code, error.step) == ("timed_out", "slow")


def test_taps_return_intermediate_outputs() -> None:
    run = run_pipeline(doubled_twice, taps=["double.output"], x=3)
    assert run.taps == {"double.output": 6}


def test_the_context_tells_where_the_code_is() -> None:
    seen: dict[str, Any] = {}

    def look(x: int) -> int:
        context = get_context()
        seen.update(
            job=context.job_id, step=context.step_name, key=context.idempotency_key, state=context.pipeline_state
        )
        return x

    run = run_pipeline(served(look, on_init=lambda: "warm"), x=1)
    assert seen == {"job": run.job_id, "step": "look", "key": f"{run.job_id}:look", "state": "warm"}


def test_on_cleanup_gets_the_state_when_the_process_ends() -> None:
    closed: list[str] = []
    run_pipeline(served(double.fn, on_init=lambda: "warm", on_cleanup=closed.append), x=1)
    assert closed == ["warm"]
