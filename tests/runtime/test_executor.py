"""The executor: same answers as the plain interpreter, parallel branches, one thread for a chain, clean stops."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeserve import Pipeline, emit, get_context, pipeline, step
from pipeserve.jobs import JobStatus
from pipeserve.runtime.realtime import RealtimeRuntime, Run, RunRequest
from pipeserve.settings import RuntimeSettings
from pipeserve.testing import run_pipeline_async


@asynccontextmanager
async def runtime_of(served: Pipeline[..., Any], **options: Any) -> AsyncIterator[RealtimeRuntime]:
    async with RealtimeRuntime(served.definition, RuntimeSettings.from_environment(**options)) as runtime:
        yield runtime


def start(runtime: RealtimeRuntime, /, **parameters: Any) -> Run:
    bound = runtime.definition.parameters.validate(parameters)
    return runtime.start(RunRequest("job", 1, bound, "run"), None)


@step
def combine(values: list[int], factor: int) -> int:
    return (sum(values) * factor + 1) % 1_000_003


@step
async def combine_later(values: list[int], factor: int) -> int:
    await asyncio.sleep(0)
    return (sum(values) * factor + 7) % 1_000_003


@given(seed=st.integers(0, 10_000), size=st.integers(1, 14))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_graph_gives_what_the_plain_interpreter_gives(seed: int, size: int) -> None:
    choice = random.Random(seed)

    @pipeline
    async def served(x: int) -> list[Any]:
        results: list[Any] = [x]
        for index in range(size):
            inputs = choice.sample(results, min(len(results), choice.randint(1, 3)))
            if choice.random() < 0.5:
                results.append(combine(inputs, index))
            else:
                results.append(await combine_later(inputs, index))
        return results

    async def both() -> tuple[Any, Any]:
        return await served(3), (await run_pipeline_async(served, {"x": 3})).outputs["output"]

    plain, executed = asyncio.run(both())
    assert plain == executed


async def test_independent_branches_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=5)

    @step
    def meet(x: int) -> int:
        return meeting.wait() + x  # returns only if the other branch runs meanwhile

    @pipeline
    def served(x: int) -> list[int]:
        return [meet(x), meet(x)]

    assert sorted((await run_pipeline_async(served, {"x": 0})).outputs["output"]) == [0, 1]


async def test_a_chain_of_sync_steps_stays_in_one_thread() -> None:
    @step
    def where(before: list[str]) -> list[str]:
        return [*before, threading.current_thread().name]

    @pipeline
    def served() -> list[str]:
        return where(where(where(where([]))))

    threads = (await run_pipeline_async(served)).outputs["output"]
    assert len(set(threads)) == 1
    assert threads[0].startswith("steps-served")


async def test_async_steps_run_on_the_loop_of_the_runtime() -> None:
    @step
    async def where() -> str:
        return threading.current_thread().name

    @pipeline
    async def served() -> str:
        return await where()

    assert (await run_pipeline_async(served)).outputs["output"] == threading.current_thread().name


async def test_results_pass_by_reference() -> None:
    marker: list[object] = []

    @step
    def make() -> list[object]:
        marker.append([1, 2])
        return marker[0]  # type: ignore[return-value]

    @step
    def same(value: object) -> bool:
        return value is marker[0]

    @pipeline
    def served() -> bool:
        return same(make())

    assert (await run_pipeline_async(served)).outputs == {"output": True}


async def test_a_failed_branch_cancels_the_others_and_nothing_downstream_runs() -> None:
    waiting = asyncio.Event()
    outcome: list[str] = []

    @step
    async def waits() -> int:
        waiting.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            outcome.append("cancelled")
            raise
        return 1

    @step
    async def fails() -> int:
        await waiting.wait()
        raise ValueError("broken")

    @step
    def after(a: int, b: int) -> int:
        outcome.append("ran")
        return a + b

    @pipeline
    async def served() -> int:
        return after(await waits(), await fails())

    run = await run_pipeline_async(served)
    assert run.error is not None
    assert run.error.step == "fails"
    assert outcome == ["cancelled"]


async def test_cancel_reaches_async_code_and_says_canceled_after_it_stopped() -> None:
    started, cleaned = asyncio.Event(), asyncio.Event()

    @step
    async def long() -> int:
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.01)  # cleaning up takes a moment
            cleaned.set()
        return 1

    @pipeline
    async def served() -> int:
        return await long()

    async with runtime_of(served) as runtime:
        run = start(runtime)
        await started.wait()
        run.cancel("enough")
        result = await run.wait()
    assert cleaned.is_set()
    assert result.status is JobStatus.CANCELED
    assert result.error is not None
    assert result.error.detail == "The job was canceled: enough"


async def test_cancel_reaches_a_thread_at_its_next_emit_and_cannot_be_swallowed() -> None:
    started = threading.Event()
    emitted: list[int] = []

    @step
    def long() -> int:
        for value in range(1_000_000):
            try:
                emit(value)
            except Exception:
                continue
            emitted.append(value)
            started.set()
        return len(emitted)

    @pipeline
    def served() -> int:
        return long()

    async with runtime_of(served) as runtime:
        run = start(runtime)
        await asyncio.to_thread(started.wait)
        run.cancel()
        assert (await run.wait()).status is JobStatus.CANCELED
    assert len(emitted) < 1_000_000


async def test_a_thread_that_asks_can_stop_by_itself() -> None:
    started = threading.Event()

    @step
    def polite() -> int:
        started.set()
        while not get_context().cancelled:
            threading.Event().wait(0.001)
        return 1

    @pipeline
    def served() -> int:
        return polite()

    async with runtime_of(served) as runtime:
        run = start(runtime)
        await asyncio.to_thread(started.wait)
        run.cancel()
        assert (await run.wait()).status is JobStatus.CANCELED


async def test_cancelling_a_waiter_leaves_the_run_alone() -> None:
    release = asyncio.Event()

    @step
    async def waits() -> int:
        await release.wait()
        return 5

    @pipeline
    async def served() -> int:
        return await waits()

    async with runtime_of(served) as runtime:
        run = start(runtime)
        waiter = asyncio.create_task(run.wait())
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        release.set()
        assert (await run.wait()).outputs == {"output": 5}


async def test_a_dynamic_body_catches_what_its_steps_raise() -> None:
    @step
    def fails(x: int) -> int:
        raise ValueError(x)

    @step
    async def recovers(x: int) -> int:
        return -x

    @pipeline(dynamic=True)
    def served(x: int) -> int:
        try:
            return fails(x)
        except ValueError:
            return recovers(x)  # type: ignore[return-value]

    assert (await run_pipeline_async(served, {"x": 3})).outputs == {"output": -3}


async def test_a_dynamic_body_that_does_not_catch_names_the_step() -> None:
    @step
    def fails(x: int) -> int:
        raise ValueError(x)

    @pipeline(dynamic=True)
    def served(x: int) -> int:
        try:
            return fails(x)
        except ValueError as error:
            raise RuntimeError("wrapped") from error

    error = (await run_pipeline_async(served, {"x": 3})).error
    assert error is not None
    assert (error.step, error.detail) == ("fails", "step 'fails' failed: RuntimeError: wrapped")


async def test_parallel_async_steps_of_a_dynamic_body_have_contexts_of_their_own() -> None:
    @step
    async def where(x: int) -> str:
        await asyncio.sleep(0)
        return str(get_context().step_name)

    @pipeline(dynamic=True)
    async def served() -> list[str]:
        return list(await asyncio.gather(*[where(value) for value in range(3)]))

    assert (await run_pipeline_async(served)).outputs["output"] == ["where", "where_2", "where_3"]


async def test_a_mutable_default_or_constant_is_not_shared_between_runs() -> None:
    @step
    def gather(x: int, seen: list[int] = [], more: dict[str, int] | None = None) -> int:  # noqa: B006 - the trap itself
        seen.append(x)
        assert more is not None
        more[str(x)] = x
        return len(seen) + len(more)

    @pipeline
    def served(x: int) -> int:
        return gather(x, more={})

    async with runtime_of(served) as runtime:
        results = [await start(runtime, x=value).wait() for value in range(3)]
    assert [result.outputs for result in results] == [{"output": 2}] * 3


async def test_system_exit_in_a_step_fails_the_run_and_not_the_process() -> None:
    @step
    def leaves() -> int:
        raise SystemExit(3)

    @pipeline
    def served() -> int:
        return leaves()

    run = await run_pipeline_async(served)
    assert run.error is not None
    assert run.error.detail == "step 'leaves' failed: SystemExit: 3"
