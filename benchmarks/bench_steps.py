"""What one step costs: a chain of 20 steps on the realtime runtime, against calling the functions."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from benchmarks._machine import percentile, table
from pipeserve import Capture, pipeline, step
from pipeserve.jobs import new_job_id
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.runtime.recording.event_budget import EventBudget
from pipeserve.runtime.recording.run_log import RunLog
from pipeserve.runtime.run import RunRequest
from pipeserve.settings import RuntimeSettings

LENGTH = 20
RUNS = 1_000


def add_one(x: int) -> int:
    return x + 1


add_step = step(add_one)


@pipeline
def chain(x: int) -> int:
    for _ in range(LENGTH):
        x = add_step(x)
    return x


@pipeline
def single(x: int) -> int:
    return add_step(x)


async def timed(run: Callable[[], Awaitable[Any]]) -> float:
    """The median seconds of one run."""
    for _ in range(RUNS // 10):
        await run()
    gc.collect()
    found: list[float] = []
    for _ in range(RUNS):
        started = time.perf_counter()
        await run()
        found.append(time.perf_counter() - started)
    return percentile(found, 50)


async def runtime_seconds(subject: Any, *, captured: bool) -> float:
    """The median seconds of a run of the pipeline ``subject``: with its events kept, or with nobody who follows."""
    definition = subject.definition
    budget = EventBudget(64 * 1_048_576)
    async with RealtimeRuntime(definition, RuntimeSettings.from_environment()) as runtime:
        parameters = definition.parameters.validate({"x": 0})

        async def run() -> None:
            job_id = new_job_id()
            sink: RunLog | None = None
            if captured:
                sink = RunLog(job_id, 1, Capture(), definition.total_steps, recorded=True, budget=budget)
            result = await runtime.start(RunRequest(job_id, 1, parameters, "bench"), sink).wait()
            assert result.outputs is not None, result.error
            if sink is not None:
                sink.release()

        return await timed(run)


async def plain() -> None:
    """The functions alone."""
    x = 0
    for _ in range(LENGTH):
        x = add_one(x)


async def main() -> None:
    """Measure and print."""
    rows: list[tuple[str, str, str, str]] = []
    plain_seconds = await timed(plain)
    rows.append(("plain calls", f"{plain_seconds * 1e6:.1f}", f"{plain_seconds / LENGTH * 1e6:.2f}", ""))
    for name, captured in (("nobody follows (memory_only)", False), ("events kept (capture)", True)):
        whole = await runtime_seconds(chain, captured=captured)
        one = await runtime_seconds(single, captured=captured)
        rows.append((name, f"{whole * 1e6:.1f}", f"{(whole - one) / (LENGTH - 1) * 1e6:.2f}", f"{one * 1e6:.1f}"))
    table(
        f"a chain of {LENGTH} steps, median of {RUNS} runs, µs",
        ("", "whole run", "per further step", "run of one step"),
        rows,
    )


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
