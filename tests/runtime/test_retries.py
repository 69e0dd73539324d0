"""Retries and timeouts of steps: how often, after which pauses, until when, and what a run tells of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.runtime.test_executor import runtime_of, start

from pipeserve import Cache, InvocationError, Pipeline, Retry, get_context, pipeline, step
from pipeserve.events import Event, EventType
from pipeserve.jobs import JobStatus
from pipeserve.runtime.realtime import RealtimeRuntime, Run, RunRequest
from pipeserve.runtime.run import RunResult
from pipeserve.testing import TestRun, run_pipeline_async

KINDS = ["sync", "async"]


class Flaky:
    """Raises ``error`` in its first ``failures`` calls, as a step of either kind."""

    def __init__(self, failures: int, error: BaseException | None = None) -> None:
        self.calls = 0
        self._failures = failures
        self._error = error or ValueError("not yet")

    def called(self) -> int:
        self.calls += 1
        if self.calls <= self._failures:
            raise self._error
        return self.calls

    def as_step(self, kind: str, **options: Any) -> Any:
        @step(name="flaky", **options)
        def here() -> int:
            return self.called()

        @step(name="flaky", **options)
        async def later() -> int:
            await asyncio.sleep(0)
            return self.called()

        return here if kind == "sync" else later


def one(called: Any, **options: Any) -> Pipeline[..., Any]:
    """A static pipeline of one step."""

    @pipeline(**options)
    def served() -> Any:
        return called()

    return served


def retrying(run: TestRun) -> list[Event]:
    return [event for event in run.events if event.event_type is EventType.STEP_RETRYING]


async def run_once(served: Pipeline[..., Any], timeout: float | None = None) -> RunResult:
    """With the records of its steps."""
    async with runtime_of(served, timeout_grace=0.0) as runtime:
        return await begin(runtime, timeout).wait()


def begin(runtime: RealtimeRuntime, timeout: float | None = None) -> Run:
    bound = runtime.definition.parameters.validate({})
    return runtime.start(RunRequest("job", 1, bound, "run", timeout=timeout), None)


# ---- how often


@pytest.mark.parametrize("kind", KINDS)
async def test_a_step_that_raises_is_called_again_and_its_report_counts_the_calls(kind: str) -> None:
    flaky = Flaky(2)
    result = await run_once(one(flaky.as_step(kind, retry=Retry(attempts=3, backoff=0))))
    assert result.outputs == {"output": 3}
    assert [(record.status, record.calls) for record in result.steps] == [("completed", 3)]


@pytest.mark.parametrize("kind", KINDS)
async def test_after_the_last_attempt_the_run_fails_by_its_error(kind: str) -> None:
    flaky = Flaky(10)
    result = await run_once(one(flaky.as_step(kind, retry=Retry(attempts=3, backoff=0))))
    assert result.error is not None
    assert result.error.detail == "step 'flaky' failed: ValueError: not yet"
    assert (flaky.calls, result.steps[0].calls, result.steps[0].status) == (3, 3, "failed")


@pytest.mark.parametrize("kind", KINDS)
async def test_each_retry_is_told_with_the_number_of_the_call_that_failed(kind: str) -> None:
    flaky = Flaky(2)
    run = await run_pipeline_async(one(flaky.as_step(kind, retry=Retry(attempts=5, backoff=0.001, jitter=0))))
    told = retrying(run)
    assert [event.data for event in told] == [
        {"call": 1, "calls": 5, "delay": 0.001},
        {"call": 2, "calls": 5, "delay": 0.002},
    ]
    assert [(event.step_name, event.level) for event in told] == [("flaky", "warning")] * 2
    assert told[0].message == "call 1 of 5 failed: ValueError: not yet"
    assert told[0].error is not None
    assert told[0].error.code == "step_failed"
    kinds = [event.event_type for event in run.events if event.step_name == "flaky"]
    assert kinds.count(EventType.STEP_STARTED) == kinds.count(EventType.STEP_COMPLETED) == 1
    assert EventType.STEP_FAILED not in kinds


@pytest.mark.parametrize("kind", KINDS)
async def test_only_the_named_exceptions_are_worth_another_call(kind: str) -> None:
    for error, calls in ((ConnectionResetError("gone"), 2), (KeyError("x"), 1)):
        flaky = Flaky(1, error)
        await run_once(one(flaky.as_step(kind, retry=Retry(attempts=3, on=(ConnectionError,), backoff=0))))
        assert flaky.calls == calls


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_to_the_caller_is_never_tried_again(kind: str) -> None:
    answer = InvocationError(status=404, code="no_document", detail="not here")
    for error in (answer, ExceptionGroup("of a task group", [ValueError("x"), answer])):
        flaky = Flaky(5, error)
        result = await run_once(one(flaky.as_step(kind, retry=Retry(attempts=3, backoff=0))))
        assert result.error is not None
        assert (flaky.calls, result.error.code) == (1, "no_document")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_step_that_wants_to_exit_is_not_called_again(kind: str) -> None:
    flaky = Flaky(5, SystemExit(3))
    result = await run_once(one(flaky.as_step(kind, retry=Retry(attempts=3, backoff=0))))
    assert (flaky.calls, result.status) == (1, JobStatus.FAILED)


@pytest.mark.parametrize("yields_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_generator_is_called_again_only_before_its_first_yield(kind: str, yields_first: bool) -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise ValueError("not yet")

    @step(retry=Retry(backoff=0))
    def counted() -> Iterator[int]:
        if yields_first:
            yield -1
        call()
        yield from range(2)

    @step(retry=Retry(backoff=0))
    async def awaited() -> AsyncIterator[int]:
        if yields_first:
            yield -1
        call()
        for value in range(2):
            yield value

    run = await run_pipeline_async(one(counted if kind == "sync" else awaited))
    told = [event.data for event in run.events if event.event_type is EventType.OUTPUT]
    if yields_first:
        assert (run.status, len(calls), told) == ("failed", 1, [{"value": -1, "index": 0}])
    else:
        assert (run.outputs, len(calls)) == ({"output": [0, 1]}, 2)
        assert told == [{"value": value, "index": value} for value in range(2)]


@pytest.mark.parametrize("kind", KINDS)
async def test_steps_of_a_dynamic_body_are_tried_again_before_it_learns_of_it(kind: str) -> None:
    works = Flaky(2).as_step(kind, retry=Retry(attempts=3, backoff=0))
    fails = Flaky(10).as_step(kind, retry=Retry(attempts=2, backoff=0)).with_name("hopeless")

    @pipeline(dynamic=True)
    def body() -> list[Any]:
        found = works()
        try:
            fails()
        except ValueError as error:
            return [found, str(error)]
        return []

    result = await run_once(body)
    assert result.outputs == {"output": [3, "not yet"]}
    assert [(record.name, record.calls) for record in result.steps] == [("flaky", 3), ("hopeless", 2)]


async def test_steps_of_an_async_body_are_tried_again_side_by_side() -> None:
    @step(retry=Retry(attempts=3, backoff=0))
    async def flaky(number: int) -> int:
        counts[number] += 1
        await asyncio.sleep(0)
        if counts[number] <= number:
            raise ValueError("not yet")
        return counts[number]

    @pipeline(dynamic=True)
    async def body() -> list[int]:
        return list(await asyncio.gather(*[flaky(number) for number in range(3)]))

    counts = [0, 0, 0]
    result = await run_once(body)
    assert result.outputs == {"output": [1, 2, 3]}
    assert sorted(record.calls for record in result.steps) == [1, 2, 3]


# ---- the pauses


def test_pauses_double_up_to_their_bound_and_jitter_only_shortens_them() -> None:
    exact = Retry(backoff=0.2, jitter=0, max_backoff=1.0)
    assert [exact.pause(call) for call in range(1, 6)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert exact.pause(10_000) == 1.0
    jittered = Retry(backoff=0.2, jitter=0.25, max_backoff=1.0)
    for call in range(1, 6):
        pauses = [jittered.pause(call) for _ in range(200)]
        assert all(0.75 * exact.pause(call) <= pause <= exact.pause(call) for pause in pauses)
        assert len(set(pauses)) > 1


@pytest.mark.parametrize("kind", KINDS)
async def test_no_call_follows_past_the_deadline(kind: str) -> None:
    flaky = Flaky(5)
    result = await run_once(one(flaky.as_step(kind, retry=Retry(attempts=3, backoff=60, jitter=0))), timeout=30)
    assert (flaky.calls, result.status) == (1, JobStatus.FAILED)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancel_ends_the_pause_at_once(kind: str) -> None:
    flaky = Flaky(5)
    retry = Retry(attempts=3, backoff=60, jitter=0)
    for options in ({}, {"cache": True}):
        flaky.calls = 0
        async with runtime_of(one(flaky.as_step(kind, retry=retry, **options))) as runtime:
            run = begin(runtime)
            async with asyncio.timeout(10):
                while not flaky.calls:  # noqa: ASYNC110 - the step has no loop to tell
                    await asyncio.sleep(0.001)
                run.cancel()
                result = await run.wait()
        assert (flaky.calls, result.status, result.steps[0].status) == (1, JobStatus.CANCELED, "canceled")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_shared_call_is_tried_again_though_the_run_that_began_it_was_canceled(kind: str) -> None:
    release = threading.Event()
    calls: list[int] = []

    def call() -> int:
        calls.append(1)
        if len(calls) == 1:
            assert release.wait(10)
            raise ValueError("not yet")
        return len(calls)

    @step(cache=True, retry=Retry(backoff=0))
    def here() -> int:
        return call()

    @step(cache=True, retry=Retry(backoff=0))
    async def later() -> int:
        return await asyncio.to_thread(call)

    async with runtime_of(one(here if kind == "sync" else later)) as runtime:
        leads, waits = start(runtime), start(runtime)
        async with asyncio.timeout(10):
            while not runtime.cache.figures().joined:  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.001)
        leads.cancel()
        await asyncio.sleep(0)  # the cancel is on its way
        release.set()
        result = await waits.wait()
        assert (await leads.wait()).status is JobStatus.CANCELED
    assert result.outputs == {"output": 2}


# ---- timeouts


async def test_each_try_of_an_async_step_has_its_timeout_and_then_the_run_has_timed_out() -> None:
    cancelled: list[int] = []
    remaining: list[float] = []

    @step(timeout=0.02, retry=Retry(attempts=3, backoff=0))
    async def slow() -> int:
        remaining.append(get_context().remaining())
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise
        return 1

    run = await run_pipeline_async(one(slow))
    assert run.error is not None
    assert (run.status, run.error.code, run.error.step) == ("timed_out", "timed_out", "slow")
    assert run.error.detail == "step 'slow' took longer than its timeout of 0.02 s."
    assert len(cancelled) == 3
    assert [event.data["call"] for event in retrying(run)] == [1, 2]
    assert all(seconds <= 0.02 for seconds in remaining)


async def test_an_async_step_that_is_in_time_on_its_second_try_completes() -> None:
    calls: list[float] = []

    @step(timeout=5, retry=Retry(on=(TimeoutError,), backoff=0))
    async def slow_at_first() -> int:
        calls.append(get_context().remaining())
        if len(calls) == 1:
            raise TimeoutError("of its own")
        return len(calls)

    @step(timeout=0.02, retry=Retry(on=(TimeoutError,), backoff=0))
    async def cut_off_at_first(before: int) -> int:
        calls.append(get_context().remaining())
        if len(calls) == 3:
            await asyncio.sleep(30)
        return len(calls)

    @pipeline
    async def served() -> int:
        return await cut_off_at_first(await slow_at_first())

    result = await run_once(served)
    assert (result.outputs, [record.calls for record in result.steps]) == ({"output": 4}, [2, 2])


async def test_a_timeout_that_retry_does_not_name_ends_the_run() -> None:
    @step(timeout=0.02, retry=Retry(on=(ValueError,), backoff=0))
    async def slow() -> int:
        await asyncio.sleep(30)
        return 1

    result = await run_once(one(slow))
    assert (result.status, result.steps[0].calls, result.steps[0].status) == (JobStatus.TIMED_OUT, 1, "timed_out")


async def test_a_timeout_of_a_step_in_a_thread_ends_the_run() -> None:
    release = threading.Event()
    calls: list[int] = []

    @step(timeout=0.02, retry=Retry(backoff=0))
    def stuck() -> int:
        calls.append(1)
        release.wait(20)
        return 1

    async with runtime_of(one(stuck), timeout_grace=0.0) as runtime:
        result = await begin(runtime).wait()
        release.set()
    assert result.error is not None
    assert (result.status, result.error.step, len(calls)) == (JobStatus.TIMED_OUT, "stuck", 1)


async def test_each_try_of_a_step_in_a_thread_has_its_whole_time() -> None:
    remaining: list[float] = []

    @step(timeout=5, retry=Retry(attempts=2, backoff=0))
    def measured() -> int:
        remaining.append(get_context().remaining())
        if len(remaining) > 1:
            return 1
        while get_context().remaining() > 4.7:
            threading.Event().wait(0.01)
        raise ValueError("not yet")

    assert (await run_once(one(measured), timeout=60)).steps[0].calls == 2
    assert remaining[1] > 4.7, "the clock starts anew"


async def test_the_runs_deadline_bounds_each_try() -> None:
    remaining: list[float] = []

    @step(timeout=1000, retry=Retry(attempts=2, backoff=0))
    def measured() -> int:
        remaining.append(get_context().remaining())
        if len(remaining) < 2:
            raise ValueError("not yet")
        return 1

    assert (await run_once(one(measured), timeout=50)).status is JobStatus.COMPLETED
    assert remaining[1] < remaining[0] <= 50


async def test_a_timeout_of_a_shared_call_times_out_every_run_that_waits_for_it() -> None:
    @step(timeout=0.05, cache=Cache())
    async def slow() -> int:
        await asyncio.sleep(30)
        return 1

    async with runtime_of(one(slow)) as runtime:
        results = [await run.wait() for run in [start(runtime), start(runtime)]]
    for result in results:
        assert result.error is not None
        assert (result.status, result.error.step) == (JobStatus.TIMED_OUT, "slow")


async def test_the_idempotency_key_is_the_same_for_every_try() -> None:
    keys: list[str] = []

    @step(retry=Retry(attempts=3, backoff=0))
    def charge() -> int:
        keys.append(get_context().idempotency_key)
        if len(keys) < 3:
            raise ConnectionError("gone")
        return len(keys)

    await run_once(one(charge))
    assert keys == ["job:charge"] * 3
