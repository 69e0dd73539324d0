"""No request sees another's parameters, taps, logs or context: 200 at once, on threads and on the loop."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from typing import Any

import pytest

from pipeserve import Pipeline, get_context, log_metadata, pipeline, step
from pipeserve.events import EventType, decode, number
from pipeserve.runtime.ports import LogEntry
from pipeserve.runtime.realtime import RealtimeRuntime, RunRequest
from pipeserve.runtime.recording.run_log import RunLog
from pipeserve.settings import RuntimeSettings

CALLERS = 200
log = logging.getLogger("tests.isolation")


def speak(name: str, where: str) -> None:
    print(f"{where} printed {name}")
    log.warning("%s logged %s", where, name)
    log_metadata({"name": name})


@step
def in_thread(name: str, suffix: str = "") -> dict[str, Any]:
    speak(name, "thread")
    time.sleep(random.random() / 100)
    speak(name, "thread")
    return {"name": name + suffix, "job": get_context().job_id, "step": get_context().step_name}


@step
async def on_loop(name: str, suffix: str = "") -> dict[str, Any]:
    speak(name, "loop")
    await asyncio.sleep(random.random() / 100)

    async def child() -> None:
        await asyncio.sleep(random.random() / 100)
        speak(name, "task")

    await asyncio.gather(child(), child())
    await asyncio.to_thread(speak, name, "to_thread")
    return {"name": name + suffix, "job": get_context().job_id, "step": get_context().step_name}


@pipeline
async def static_pipeline(name: str) -> dict[str, Any]:
    return {"thread": in_thread(name), "loop": await on_loop(name)}


@pipeline(dynamic=True)
async def dynamic_pipeline(name: str) -> dict[str, Any]:
    return {"thread": await asyncio.to_thread(in_thread, name), "loop": await on_loop(name)}


@pipeline(dynamic=True)
def threaded_pipeline(name: str) -> dict[str, Any]:
    return {"thread": in_thread(name), "loop": on_loop(name)}


@pytest.mark.parametrize(
    "served", [static_pipeline, dynamic_pipeline, threaded_pipeline], ids=lambda served: served.name
)
async def test_two_hundred_requests_at_once_never_cross(served: Pipeline[..., Any]) -> None:
    definition = served.definition
    taps = ("in_thread.output", "on_loop.output")
    async with RealtimeRuntime(definition, RuntimeSettings.from_environment(max_concurrency=CALLERS)) as runtime:

        async def call(index: int) -> None:
            name, suffix, job_id = f"caller-{index}", f"-{index}", f"job-{index}"
            bound = definition.parameters.validate({"name": name, "in_thread.suffix": suffix})
            own = RunLog(job_id, 1, definition.capture, definition.total_steps)
            result = await runtime.start(RunRequest(job_id, 1, bound, name, None, taps), own).wait()

            assert result.outputs is not None, result.error
            answers = result.outputs if not definition.dynamic else result.outputs["output"]
            assert answers["thread"] == {"name": name + suffix, "job": job_id, "step": "in_thread"}
            assert answers["loop"] == {"name": name, "job": job_id, "step": "on_loop"}
            assert name.encode() in result.taps_json
            assert result.taps_json.count(b"caller-") == 2

            events = [decode(number(entry.seq, entry.body)) for entry in own.read() if isinstance(entry, LogEntry)]
            lines = [str(event.message) for event in events if event.event_type is EventType.LOG]
            assert len(lines) == 2 * (
                2 + 1 + 2 + 1
            )  # print and log: two in the thread, one on the loop, two tasks, one more thread
            assert all(line.endswith(name) for line in lines)
            assert {event.data["name"] for event in events if event.event_type is EventType.METADATA} == {name}
            assert {event.job_id for event in events} == {job_id}

        await asyncio.gather(*[call(index) for index in range(CALLERS)])


async def test_what_runs_outside_a_run_is_nobodys_log(capsys: pytest.CaptureFixture[str]) -> None:
    spoken = threading.Event()

    @step
    def quiet() -> None:
        spoken.wait(10)

    @pipeline
    def served() -> None:
        quiet()

    async with RealtimeRuntime(served.definition, RuntimeSettings.from_environment()) as runtime:
        own = RunLog("job", 1, served.definition.capture, 1)
        run = runtime.start(RunRequest("job", 1, served.definition.parameters.validate({}), "run"), own)
        print("outside")
        thread = threading.Thread(target=lambda: print("from a thread of nobody's"))
        thread.start()
        thread.join()
        spoken.set()
        await run.wait()
    bodies = b"".join(own.bodies(0))
    assert b"outside" not in bodies
    assert b"nobody" not in bodies
    assert capsys.readouterr().out == "outside\nfrom a thread of nobody's\n"
