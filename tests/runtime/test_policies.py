"""Policies of steps together, and with all that users do: steps of one name, odd exceptions, runs that leave early."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest
from tests.runtime import process_steps
from tests.runtime.test_executor import runtime_of, start

from pipeserve import Batch, Cache, Pipeline, Retry, get_context, pipeline, step
from pipeserve.errors import StaleAttemptError
from pipeserve.jobs import JobStatus
from pipeserve.runtime.batcher import Batcher
from pipeserve.runtime.checkpoints import JobCheckpoints
from pipeserve.runtime.memory import MemoryStore
from pipeserve.runtime.realtime import RealtimeRuntime, Run, RunRequest
from pipeserve.runtime.step_code import StepCode
from pipeserve.runtime.threads import ThreadPool
from pipeserve.settings import RuntimeSettings

KINDS = ["sync", "async"]


async def outputs(served: Pipeline[..., Any], **parameters: Any) -> Any:
    async with runtime_of(served) as runtime:
        result = await start(runtime, **parameters).wait()
    assert result.error is None, result.error
    return result.outputs


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(0.001)


def begin(runtime: RealtimeRuntime, timeout: float | None = None, checkpoints: JobCheckpoints | None = None) -> Run:
    bound = runtime.definition.parameters.validate({})
    return runtime.start(RunRequest("job", 1, bound, "run", timeout=timeout, checkpoints=checkpoints), None)


# ---- steps of one name and one text


def adder(number: int) -> Any:
    @step(cache=True)
    def add(value: int) -> int:
        return value + number

    return add


class Model:
    """What can't be compared."""

    def __init__(self, number: int) -> None:
        self.number = number


def model_adder(model: Model, **options: Any) -> Any:
    @step(cache=Cache(**options))
    def add(value: int) -> int:
        return value + model.number

    return add


def batched_adder(number: int) -> Any:
    @step(batch=Batch())
    def add(values: list[int]) -> list[int]:
        return [value + number for value in values]

    return add


@pytest.mark.parametrize("make", [adder, batched_adder, lambda number: model_adder(Model(number))])
async def test_steps_that_one_function_has_made_keep_their_results_apart(make: Callable[[int], Any]) -> None:
    one, ten = make(1), make(10)

    @pipeline
    def static(value: int) -> tuple[int, int]:
        return one(value), ten(value)

    @pipeline(dynamic=True)
    def dynamic(value: int) -> tuple[int, int]:
        return one(value), ten(value)

    @pipeline(dynamic=True)
    def made_in_the_run(value: int) -> tuple[int, int]:
        return make(1)(value), make(10)(value)

    for served in (static, dynamic, made_in_the_run):
        assert list((await outputs(served, value=0)).values()) in ([1, 10], [[1, 10]])


async def test_a_step_that_has_kept_plain_values_is_found_in_the_cache_again() -> None:
    @pipeline(dynamic=True)
    def served() -> int:
        return adder(5)(1)

    async with runtime_of(served) as runtime:
        assert [(await start(runtime).wait()).steps[0].cached for _ in range(2)] == [False, True]


async def test_a_step_made_in_each_run_of_what_can_not_be_compared_is_computed_in_each() -> None:
    numbers = iter(range(3))

    @pipeline(dynamic=True)
    def served() -> int:
        return model_adder(Model(next(numbers)))(1)

    async with runtime_of(served) as runtime:
        assert [(await start(runtime).wait()).outputs for _ in range(3)] == [{"output": n} for n in (1, 2, 3)]


def test_what_tells_steps_apart_is_the_same_in_every_process() -> None:
    def code(made: Any) -> StepCode:
        return StepCode.of(made.definition)

    assert code(adder(1)) == code(adder(1)) != code(adder(2))
    assert code(adder(1)).whole
    assert code(model_adder(Model(1))) == code(model_adder(Model(2)))
    assert not code(model_adder(Model(1))).whole


async def test_of_two_steps_that_look_alike_one_is_not_shared_with_other_processes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, ten = model_adder(Model(1), scope="shared"), model_adder(Model(10), scope="shared")

    @pipeline
    def served(value: int) -> tuple[int, int]:
        return one(value), ten(value)

    port = MemoryStore().cache
    statuses: list[object] = []
    for _ in range(2):  # the second stands for another process
        async with RealtimeRuntime(served.definition, RuntimeSettings.from_environment(), shared_cache=port) as runtime:
            result = await start(runtime, value=0).wait()
            assert result.outputs is not None
            assert list(result.outputs.values()) in ([1, 10], [[1, 10]])
        statuses += [record.cache and record.cache["status"] for record in result.steps]
    assert statuses == ["miss", "miss", "shared_hit", "miss"]
    assert "is cached in its process only" in caplog.text


async def test_steps_that_bodies_make_anew_do_not_pile_up() -> None:
    @pipeline(dynamic=True)
    def served(value: int) -> int:
        return batched_adder(value)(1)

    async with runtime_of(served) as runtime:
        kept: list[weakref.ref[Any]] = []
        for value in range(1100):
            run = start(runtime, value=value)
            result = await run.wait()
            assert result.outputs == {"output": value + 1}
        specs = runtime._specs.known()
        kept = [weakref.ref(spec.definition.fn) for spec in specs]
        assert len(kept) <= 512


# ---- odd exceptions


async def test_stop_iteration_in_a_batched_step_fails_its_run() -> None:
    @step(batch=Batch())
    def first(values: list[list[int]]) -> list[int]:
        return [next(iter(value)) for value in values]

    @pipeline
    def served(value: list[int]) -> int:
        return first(value)

    async with runtime_of(served) as runtime, asyncio.timeout(10):
        result = await start(runtime, value=[]).wait()
    assert result.error is not None
    assert result.error.detail == "step 'first' failed: RuntimeError: StopIteration: "


async def test_stop_iteration_of_a_step_in_a_thread_of_an_async_body_fails_its_run() -> None:
    @step(cache=True)
    def first(value: list[int]) -> int:
        return next(iter(value))

    @pipeline(dynamic=True)
    async def served(value: list[int]) -> int:
        return await asyncio.to_thread(first, value)

    async with runtime_of(served) as runtime, asyncio.timeout(10):
        result = await start(runtime, value=[]).wait()
    assert result.error is not None
    assert "step 'first' raised StopIteration" in result.error.detail


class Exits:
    """Ends the process, for all it knows, when it is copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise SystemExit(3)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_result_that_raises_while_it_is_kept_fails_all_who_wait_for_it(kind: str) -> None:
    go = threading.Event()

    @step(name="made", cache=Cache(copy=True))
    def here() -> Any:
        go.wait(5)
        return Exits()

    @step(name="made", cache=Cache(copy=True))
    async def later() -> Any:
        await asyncio.to_thread(go.wait, 5)
        return Exits()

    made: Any = here if kind == "sync" else later

    @pipeline
    def served() -> Any:
        return made()

    async with runtime_of(served) as runtime, asyncio.timeout(10):
        runs = [begin(runtime) for _ in range(3)]
        await until(lambda: runtime.cache.figures().joined == 2)
        go.set()
        results = [await run.wait() for run in runs]
    assert [result.status for result in results] == [JobStatus.FAILED] * 3


# ---- those who leave early


@pytest.mark.parametrize("kind", KINDS)
async def test_a_shared_call_is_tried_again_for_those_who_still_have_time(kind: str) -> None:
    """The run that leads has used up its own."""
    calls = 0
    fail = threading.Event()

    def called() -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            assert fail.wait(10)
            raise ValueError("not yet")
        return calls

    @step(name="flaky", cache=True, retry=Retry(attempts=2, backoff=0.001))
    def here() -> int:
        return called()

    @step(name="flaky", cache=True, retry=Retry(attempts=2, backoff=0.001))
    async def later() -> int:
        return await asyncio.to_thread(called)

    flaky: Any = here if kind == "sync" else later

    @pipeline
    def served() -> int:
        return flaky()

    async with runtime_of(served, timeout_grace=0.0) as runtime:
        leader = begin(runtime, timeout=0.1)
        await until(lambda: calls)
        follower = begin(runtime)
        assert (await leader.wait()).status is JobStatus.TIMED_OUT
        fail.set()
        assert (await follower.wait()).outputs == {"output": 2}


async def test_a_step_sees_the_deadline_of_the_run_that_waits_for_longest() -> None:
    seen: list[float] = []
    go = threading.Event()

    @step(cache=True)
    def look() -> int:
        context = get_context()
        seen.append(context.remaining())
        assert go.wait(10)
        seen.append(context.remaining())
        return 1

    @pipeline
    def served() -> int:
        return look()

    async with runtime_of(served) as runtime:
        runs = [begin(runtime, timeout=50)]
        await until(lambda: seen)
        runs.append(begin(runtime, timeout=500))
        await until(lambda: runtime.cache.figures().joined)
        go.set()
        for run in runs:
            assert (await run.wait()).status is JobStatus.COMPLETED
    assert seen[0] <= 50 < seen[1] <= 500


async def test_a_batch_that_ignores_its_cancel_does_not_hold_up_the_end() -> None:
    go = asyncio.Event()

    async def stubborn(items: list[int]) -> list[int]:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        return items

    batcher: Batcher[int, int] = Batcher(Batch(), stubborn, others=lambda: 1)
    call = asyncio.create_task(batcher.call(1))
    await until(lambda: batcher.figures().batches)
    await batcher.aclose(timeout=0)
    with pytest.raises(Exception, match="shutting down"):
        await call
    go.set()
    await until(lambda: batcher.idle)


async def test_an_idle_thread_keeps_nothing_of_its_last_call() -> None:
    class Large:
        pass

    def work(value: Large) -> Callable[[], None]:
        return lambda: done.append(value is not None)

    done: list[bool] = []
    threads = ThreadPool(1, "idle")
    value = Large()
    kept = weakref.ref(value)
    threads.submit(work(value))
    await until(lambda: done)
    del value

    def gone() -> bool:
        gc.collect()
        return kept() is None

    async with asyncio.timeout(10):
        await until(gone)
    assert threads.close(5)


# ---- on the loop


async def test_a_def_step_on_the_loop_is_tried_again_without_a_pause() -> None:
    calls: list[float] = []

    @step(retry=Retry(attempts=3, backoff=30, jitter=0))
    def flaky() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError("not yet")
        return len(calls)

    @pipeline(dynamic=True)
    async def served() -> int:
        return flaky()

    async with asyncio.timeout(10):
        assert await outputs(served) == {"output": 3}


class Refusing:
    """Checkpoints of a job that another attempt owns."""

    def __init__(self) -> None:
        self.asked = 0

    async def save(self, job_id: str, attempt: int, name: str, record: bytes) -> None:
        self.asked += 1
        raise StaleAttemptError.of(job_id, attempt)

    async def load(self, job_id: str) -> Mapping[str, bytes]:
        return {}


async def test_a_durable_step_on_the_loop_that_can_not_be_recorded_fails_there() -> None:
    @step(checkpoint=True)
    def made() -> object:
        return object()

    @pipeline(dynamic=True)
    async def served() -> int:
        made()
        return 1

    async with runtime_of(served) as runtime:
        checkpoints = await JobCheckpoints.load(Refusing(), "job", 1, runtime.codec)
        result = await begin(runtime, checkpoints=checkpoints).wait()
    assert result.error is not None
    assert "step 'made' has checkpoint=True, but" in result.error.detail


async def test_a_record_that_is_refused_in_the_background_is_nobodys_error(caplog: pytest.LogCaptureFixture) -> None:
    @step(checkpoint=True)
    def made() -> int:
        return 1

    @pipeline(dynamic=True)
    async def served() -> int:
        return made()

    port = Refusing()
    with caplog.at_level(logging.WARNING):
        async with runtime_of(served) as runtime:
            checkpoints = await JobCheckpoints.load(port, "job", 1, runtime.codec)
            assert (await begin(runtime, checkpoints=checkpoints).wait()).outputs == {"output": 1}
            await until(lambda: port.asked)
        gc.collect()
    assert caplog.text == ""


# ---- what a batched step declares and returns


async def test_a_batched_step_may_declare_plain_lists() -> None:
    @step(batch=Batch())
    def double(values: list) -> list:
        return [2 * value for value in values]

    @pipeline
    def served(value: int) -> int:
        return double(value)

    assert await outputs(served, value=2) == {"output": 4}


async def test_a_batched_step_that_returns_a_set_fails() -> None:
    @step(batch=Batch())
    def double(values: list[int]) -> list[int]:
        return cast(list[int], {2 * value for value in values})

    @pipeline
    def served(value: int) -> int:
        return double(value)

    async with runtime_of(served) as runtime:
        result = await start(runtime, value=2).wait()
    assert result.error is not None
    assert "returned a set; it must return a list" in result.error.detail


# ---- in processes


async def test_a_step_in_a_process_sees_nothing_that_another_request_has_set() -> None:
    async with runtime_of(process_steps.remembering, step_processes=1) as runtime:
        seen = [(await start(runtime, word=word).wait()).outputs for word in ("one", "two")]
    assert seen == [{"output": "nothing"}] * 2


async def test_a_steps_timeout_begins_when_its_process_is_ready() -> None:
    async with runtime_of(process_steps.started_late) as runtime:
        result = await start(runtime, word="hello").wait()
    assert result.outputs is not None
    word, remaining = result.outputs["output"]
    assert word == "hello"
    assert 0 < remaining <= 1.0
