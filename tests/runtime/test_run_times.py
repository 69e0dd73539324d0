"""What an ended run adds to the service's histograms, by kind."""

from __future__ import annotations

import pytest

from pipeserve import Cache, Retry, pipeline, step
from pipeserve.jobs import JobStatus, new_job_id
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.runtime.run import RunRequest, RunResult, StepRecord
from pipeserve.runtime.run_times import RunTimes
from pipeserve.sdk.pipeline import Pipeline
from pipeserve.settings import RuntimeSettings


@step
def double(x: int) -> int:
    return 2 * x


@step(cache=Cache(ttl=60))
def kept(x: int) -> int:
    return x


@step(retry=Retry(attempts=1))
def breaking(x: int) -> int:
    raise ValueError(x)


@pipeline
def chain(x: int) -> int:
    return double.with_name("last")(double(double(kept(x))))


@pipeline(dynamic=True)
def loop(x: int) -> int:
    for number in range(x):
        double.with_name(f"call {number}")(number)
    return x


@pipeline
def broken(x: int) -> int:
    return breaking(double(x))


async def times_of(served: Pipeline[..., int], *runs: int) -> list[dict[str, int]]:
    """How many times of each kind every run adds; all run in one process."""
    definition = served.definition
    counts: list[dict[str, int]] = []
    async with RealtimeRuntime(definition, RuntimeSettings.from_environment()) as runtime:
        for x in runs:
            bound = definition.parameters.validate({"x": x})
            result = await runtime.start(RunRequest(new_job_id(), 1, bound, "test"), None).wait()
            counts.append({kind: len(times) for kind, times in RunTimes(definition).of(result).items()})
    return counts


async def test_calls_count_under_the_name_of_their_step_and_cached_ones_not_at_all():
    first, again = await times_of(chain, 1, 1)
    assert first == {"step": 4, "run": 1, "step/double": 3, "step/kept": 1}
    assert again == {"step": 4, "run": 1, "step/double": 3}


async def test_there_are_as_many_kinds_as_the_code_has_steps_whatever_calls_are_named():
    assert await times_of(loop, 30) == [{"step": 30, "run": 1, "step/double": 30}]


async def test_a_step_that_only_a_run_makes_has_no_kind():
    @pipeline(dynamic=True)
    def making(x: int) -> int:
        made = {f"made_{number}": number for number in range(x)}
        for name, number in made.items():

            def one(value: int) -> int:
                return value

            one.__name__ = one.__qualname__ = name
            step(one)(number)
        return x

    assert await times_of(making, 3) == [{"step": 3, "run": 1}]


async def test_a_run_that_failed_adds_the_steps_that_completed():
    assert await times_of(broken, 1) == [{"step": 2, "step/double": 1}]


@pytest.mark.parametrize(
    "changes", [{"cached": True}, {"resumed": True}, {"status": "canceled"}, {"status": "running", "duration": None}]
)
def test_a_call_that_did_not_run_to_its_end_has_no_time_of_its_step(changes: dict[str, object]):
    members = {"name": "double_2", "started_at": 0.0, "status": "completed", "duration": 0.5, "step": "double"}
    result = RunResult(JobStatus.COMPLETED, 1.0, steps=[StepRecord(**(members | changes))])  # type: ignore[arg-type]
    times = RunTimes(chain.definition).of(result)
    assert times == {"run": [1.0], "step": [] if changes.get("duration", 0.5) is None else [0.5]}
