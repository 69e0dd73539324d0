"""What a step starts belongs to it: threads, pools and tasks report to its own job, and to no other."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest

from pipeserve import Pipeline, get_context, pipeline, step
from pipeserve.events import EventType, decode, number
from pipeserve.runtime.ports import LogEntry
from pipeserve.runtime.realtime import RealtimeRuntime, RunRequest
from pipeserve.runtime.recording.run_log import RunLog
from pipeserve.settings import RuntimeSettings

_log = logging.getLogger("tests.threads")
_shared_pool = ThreadPoolExecutor(2, thread_name_prefix="shared")  # as a module of an author has one


async def lines_of(served: Pipeline[..., Any], *names: str) -> dict[str, list[str]]:
    """What each of several runs at the same time has in its log, by its ``name`` parameter."""
    definition = served.definition
    async with RealtimeRuntime(definition, RuntimeSettings.from_environment()) as runtime:
        return await _lines_of(runtime, *names)


async def _lines_of(runtime: RealtimeRuntime, *names: str) -> dict[str, list[str]]:
    definition = runtime.definition
    logs = {name: RunLog(name, 1, definition.capture, definition.total_steps) for name in names}

    async def run(name: str, log: RunLog) -> None:
        bound = definition.parameters.validate({"name": name})
        result = await runtime.start(RunRequest(name, 1, bound, name), log).wait()
        assert result.error is None, result.error

    await asyncio.gather(*[run(name, log) for name, log in logs.items()])
    return {name: _messages(log) for name, log in logs.items()}


def _messages(log: RunLog) -> list[str]:
    events = [decode(number(entry.seq, entry.body)) for entry in log.read() if isinstance(entry, LogEntry)]
    return [str(event.message) for event in events if event.event_type is EventType.LOG]


def of_one_step(fn: Any) -> Pipeline[..., Any]:
    called = step(fn)

    @pipeline
    def serve(name: str) -> None:
        called(name)

    return serve


async def test_two_jobs_at_once_never_see_each_others_lines() -> None:
    meeting = threading.Barrier(2, timeout=10)

    def speak(name: str) -> None:
        def say(where: str) -> None:
            meeting.wait()  # both jobs are here now
            print(f"{name} {where}")
            _log.warning("%s %s", name, where)

        for _ in range(3):
            thread = threading.Thread(target=say, args=("thread",))
            thread.start()
            thread.join()
            _shared_pool.submit(say, "shared pool").result()
            with ThreadPool(1) as pool:
                pool.apply(say, ("own pool",))
            say("itself")

    found = await lines_of(of_one_step(speak), "ann", "bob")
    for name, lines in found.items():
        assert len(lines) == 3 * 4 * 2
        assert {line.split()[0] for line in lines} == {name}


async def test_what_others_give_to_a_pool_that_a_step_has_warmed_is_not_the_steps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ThreadPoolExecutor(1) as pool:

        def warm(name: str) -> None:
            pool.submit(print, "of the step").result()

        async with RealtimeRuntime(of_one_step(warm).definition, RuntimeSettings.from_environment()) as runtime:
            first = await _lines_of(runtime, "job")
            pool.submit(print, "of nobody").result()
            seen = pool.submit(lambda: get_context().job_id).result()
    assert first == {"job": ["of the step"]}
    assert seen == "local"
    assert capsys.readouterr().out == "of the step\nof nobody\n"


async def test_a_thread_that_outlives_its_run_reports_nothing_more() -> None:
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def leave(name: str) -> None:
        def linger() -> None:
            print("while it runs")
            ended.wait(10)
            print("after its end")
            _log.warning("after its end")

        thread = threading.Thread(target=linger)
        threads.append(thread)
        thread.start()

    definition = of_one_step(leave).definition
    async with RealtimeRuntime(definition, RuntimeSettings.from_environment()) as runtime:
        log = RunLog("job", 1, definition.capture, 1)
        await runtime.start(RunRequest("job", 1, definition.parameters.validate({"name": "x"}), "run"), log).wait()
        ended.set()
        await asyncio.to_thread(threads[0].join)
        assert "after its end" not in _messages(log)


async def test_a_thread_has_all_of_its_steps_context_variables() -> None:
    own: contextvars.ContextVar[str] = contextvars.ContextVar("own", default="nothing")
    seen: list[str] = []

    def look(name: str) -> None:
        own.set(name)
        thread = threading.Thread(target=lambda: seen.append(own.get()))
        thread.start()
        thread.join()
        seen.append(_shared_pool.submit(own.get).result())
        seen.append(str(_shared_pool.submit(lambda: get_context().job_id).result()))

    await lines_of(of_one_step(look), "ann")
    assert seen == ["ann", "ann", "ann"]


async def test_an_error_that_ends_a_thread_is_a_line_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # not pytest's

    def fail(name: str) -> None:
        def broken() -> None:
            raise ValueError(f"{name} broke")

        thread = threading.Thread(target=broken)
        thread.start()
        thread.join()

    found = await lines_of(of_one_step(fail), "ann")
    assert "ValueError: ann broke" in found["ann"]


async def test_all_is_as_it_was_once_the_last_runtime_has_ended() -> None:
    def places() -> list[object]:
        return [sys.stdout, sys.stderr, logging.Logger.callHandlers, threading.Thread.start, ThreadPoolExecutor.submit]

    def say(name: str) -> None:
        print(name)

    before = places()
    definition, settings = of_one_step(say).definition, RuntimeSettings.from_environment()
    first, second = RealtimeRuntime(definition, settings), RealtimeRuntime(definition, settings)
    await first.__aenter__()
    await second.__aenter__()
    assert not set(before) & set(places())
    assert await _lines_of(first, "one") == {"one": ["one"]}
    await first.__aexit__()  # not the last to have come
    assert await _lines_of(second, "two") == {"two": ["two"]}
    await second.__aexit__()
    assert places() == before
