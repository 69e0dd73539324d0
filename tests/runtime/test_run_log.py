"""What a run's log holds while nobody takes it, and what it says when something is missing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from tests.store_fixtures import wait_until

from pipeserve import Capture, Pipeline, emit, pipeline, progress, step
from pipeserve.errors import StoreUnavailableError
from pipeserve.events import Event, EventType
from pipeserve.jobs import JobStatus
from pipeserve.runtime.inline import InlineRuns
from pipeserve.runtime.inline_run import InlineRun
from pipeserve.runtime.memory import MemoryStore
from pipeserve.runtime.ports import LogEntry, LogGap, NewJob
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.runtime.recording.event_budget import ALWAYS_BYTES, EventBudget
from pipeserve.runtime.recording.recorder import LiveRecorder
from pipeserve.runtime.recording.run_log import RunLog
from pipeserve.runtime.recording.run_view import terminal_event
from pipeserve.runtime.run import RunResult
from pipeserve.settings import RuntimeSettings

MIB = 1_048_576
LIMIT = MIB  # of one log, of a budget four times as large


def output_event(size: int = 1024) -> Event:
    return Event(EventType.OUTPUT, "job", 1, data={"value": "x" * size, "index": 0})


def a_log(budget: EventBudget | None, *, recorded: bool = True, total_steps: int | None = 1) -> RunLog:
    return RunLog("job", 1, Capture(), total_steps, recorded=recorded, budget=budget)


def closed(log: RunLog) -> list[dict[str, Any]]:
    """All that is in the log after its end, in order."""
    log.close(terminal_event("job", 1, RunResult(JobStatus.COMPLETED, 0.0, b"{}")))
    return [orjson.loads(body) for body in log.bodies(0)]


def missing(bodies: Sequence[dict[str, Any]]) -> list[int]:
    """How much is missing, as the log says."""
    return [body["data"]["dropped"] for body in bodies if body["data"].get("logger") == "pipeserve"]


class Ledger:
    """A ledger in memory whose store is away, frozen or slow when told so."""

    def __init__(self) -> None:
        self.store = MemoryStore(event_log_max=1_000_000)
        self.away = False
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.finishes = asyncio.Event()
        self.finishes.set()
        self.appends: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store.ledger, name)

    async def _answer(self) -> None:
        await self.thawed.wait()
        if self.away:
            raise StoreUnavailableError("nobody is there")

    async def open(self, *arguments: Any) -> None:
        await self._answer()
        await self.store.ledger.open(*arguments)

    async def record(self, runs: Any) -> None:
        await self._answer()
        await self.store.ledger.record(runs)

    async def append(self, job_id: str, attempt: int, bodies: Sequence[bytes], view: Any, **options: bool) -> int:
        await asyncio.sleep(0.002)
        await self._answer()
        self.appends.append(sum(map(len, bodies)))
        return await self.store.ledger.append(job_id, attempt, bodies, view, **options)

    async def finish(self, *arguments: Any) -> bool:
        await self.finishes.wait()
        await self._answer()
        return await self.store.ledger.finish(*arguments)

    async def bodies(self, job_id: str) -> list[dict[str, Any]]:
        """The job's log in the store, which must have no hole."""
        entries = await self.store.log.read(job_id, limit=1_000_000)
        assert [entry.seq for entry in entries if isinstance(entry, LogEntry)] == list(range(1, len(entries) + 1))
        return [orjson.loads(entry.body) for entry in entries if isinstance(entry, LogEntry)]


@asynccontextmanager
async def inline_runs(served: Pipeline[..., Any], ledger: Any, **options: Any) -> AsyncIterator[InlineRuns]:
    settings = RuntimeSettings.from_environment(**options)
    async with (
        RealtimeRuntime(served.definition, settings) as runtime,
        InlineRuns(runtime, ledger, served.definition, "deployment", "owner", settings) as runs,
    ):
        yield runs


def start(runs: InlineRuns) -> InlineRun:
    return runs.start(runs.definition.parameters.validate({}), raw_parameters=b"{}")


async def recorded(runs: InlineRuns, inline: InlineRun) -> None:
    await wait_until(lambda: runs.find(inline.job_id) is None, description="the run is recorded", seconds=30)


@step
def flood() -> int:
    for _ in range(200_000):
        emit("x" * 1000)
    return 1


@pipeline
def flooding() -> int:
    return flood()


# ---- the bound


async def test_a_flood_while_the_store_is_away_stays_bounded_and_says_what_is_missing() -> None:
    ledger = Ledger()
    ledger.away = True
    async with inline_runs(flooding, ledger) as runs:
        inline = start(runs)
        most = 0
        while inline.result is None:
            most = max(most, runs.event_figures()["bytes"])
            await asyncio.sleep(0.005)
        limit = runs.event_figures()["max_bytes"] // 4
        assert limit // 2 < most < limit + ALWAYS_BYTES
        assert inline.log.last_seq * 1000 < limit
        ledger.away = False
        await recorded(runs, inline)
        assert runs.event_figures()["bytes"] == 0
        dropped = runs.event_figures()["dropped"]
    bodies = await ledger.bodies(inline.job_id)
    values = [body for body in bodies if body["event_type"] == "output"]
    assert missing(bodies) == [dropped]
    assert len(values) + dropped == 200_000
    assert [body["event_type"] for body in bodies[-3:]] == ["log", "progress_update", "pipeline_completed"]
    assert (bodies[-3]["level"], bodies[-3]["data"]["logger"]) == ("warning", "pipeserve")
    assert bodies[-3]["message"].startswith(f"{dropped} events were dropped")
    assert "step_completed" in [body["event_type"] for body in bodies], "a life-cycle event is never dropped"


async def test_what_is_missing_is_told_where_it_is_missing_once_the_store_is_back() -> None:
    ledger, flooded, resume = Ledger(), threading.Event(), threading.Event()

    @step
    def talk() -> int:
        for _ in range(3000):
            emit("y" * 1000)
        flooded.set()
        resume.wait(10)
        emit("after")
        return 1

    @pipeline
    def talking() -> int:
        return talk()

    ledger.away = True
    async with inline_runs(talking, ledger, event_buffer=4 * LIMIT) as runs:
        inline = start(runs)
        await asyncio.to_thread(flooded.wait)
        assert runs.event_figures()["dropped"] > 1000
        ledger.away = False
        await wait_until(lambda: inline.log.held < LIMIT // 2, description="the store has taken what was there")
        resume.set()
        await recorded(runs, inline)
        dropped = runs.event_figures()["dropped"]
    bodies = await ledger.bodies(inline.job_id)
    assert missing(bodies) == [dropped]
    told = [body["data"] for body in bodies if body["event_type"] in ("output", "log")]
    assert told[-2:] == [{"logger": "pipeserve", "dropped": dropped}, {"value": "after", "index": 3000}]


async def test_a_workers_own_log_is_bounded_too() -> None:
    ledger: Any = Ledger()
    job = NewJob(job_id="job", deployment_id="d", pipeline_name="p", run_name="r", parameters=b"{}")
    await ledger.submit(job)
    await ledger.claim("owner", 1)
    budget = EventBudget(4 * LIMIT)
    ledger.away = True
    async with LiveRecorder(ledger, "job", 1, flooding.definition, budget=budget) as recorder:
        for _ in range(20_000):
            recorder.send(output_event())
        assert LIMIT // 2 < budget.taken < LIMIT + ALWAYS_BYTES
        ledger.away = False
        await recorder.finish(RunResult(JobStatus.COMPLETED, 0.0, b"{}"))
    assert budget.taken == 0
    assert missing(await ledger.bodies("job")) == [budget.dropped]


async def test_life_cycle_events_are_kept_when_nothing_else_fits() -> None:
    log = a_log(EventBudget(4 * LIMIT))
    for _ in range(2000):
        log.send(output_event())
    for at in range(500):
        log.send(Event(EventType.STEP_STARTED, "job", 1, step_name=f"s{at}"))
        log.send(Event(EventType.STEP_COMPLETED, "job", 1, step_name=f"s{at}", data={"cached": False, "duration": 0.0}))
        log.send(output_event())
    log.send(Event(EventType.CANCELLATION_REQUESTED, "job", 1))
    types = [body["event_type"] for body in closed(log)]
    assert (types.count("step_started"), types.count("step_completed")) == (500, 500)
    assert types[-4:] == ["cancellation_requested", "log", "progress_update", "pipeline_completed"]


async def test_progress_goes_on_when_there_is_room_again() -> None:
    log = a_log(EventBudget(4 * LIMIT), total_steps=None)
    while log.held < LIMIT:
        before = log.last_seq
        log.send(output_event())
        if log.last_seq == before:
            break
    full = log.last_seq
    log.send(Event(EventType.PROGRESS_UPDATE, "job", 1, data={"fraction": 0.5}))
    assert log.last_seq == full, "no room, no progress"
    log.written(full)
    log.send(Event(EventType.PROGRESS_UPDATE, "job", 1, data={"fraction": 0.6}))
    await wait_until(lambda: log.last_seq >= full + 2, description="progress is told")
    bodies = [orjson.loads(body) for body in log.bodies(full)]
    assert [body["event_type"] for body in bodies] == ["log", "progress_update"]
    assert (missing(bodies), bodies[1]["data"]["percent"]) == ([1], 60.0)


async def test_what_is_dropped_is_one_stretch_and_not_every_other_event() -> None:
    log = a_log(EventBudget(4 * LIMIT))
    written = 0
    for at in range(4000):
        log.send(output_event())
        if at % 10 == 9 and log.last_seq - written > 2:  # a store that takes a fifth of it
            written += 2
            log.written(written)
    told = missing(closed(log))
    assert sum(told) > 1000
    assert len(told) < 6


# ---- shared by all logs of a process


async def test_a_run_that_floods_does_not_silence_its_neighbours() -> None:
    budget = EventBudget(4 * LIMIT)
    floods = [a_log(budget) for _ in range(6)]
    for log in floods:
        for _ in range(2000):
            log.send(output_event())
    assert budget.taken <= 4 * LIMIT + 6 * ALWAYS_BYTES
    neighbour = a_log(budget)
    for _ in range(40):
        neighbour.send(output_event())
    assert neighbour.last_seq == 40
    for log in [*floods, neighbour]:
        log.release()
    assert budget.taken == 0


async def test_what_is_written_is_given_back() -> None:
    budget = EventBudget(4 * LIMIT)
    log = a_log(budget)
    for _ in range(20):
        for _ in range(400):
            log.send(output_event())
        log.written(log.last_seq)
    assert (budget.dropped, log.held) == (0, 0)
    assert closed(log)[-2]["event_type"] == "output"
    log.release()
    assert budget.taken == 0


async def test_a_log_that_was_given_up_takes_nothing_more() -> None:
    budget = EventBudget(4 * LIMIT)
    log = a_log(budget)
    log.send(output_event())
    log.release()
    log.send(output_event())
    assert (log.last_seq, budget.taken) == (1, 0)


async def test_a_log_that_nobody_records_lets_its_oldest_go() -> None:
    log = a_log(EventBudget(4 * LIMIT), recorded=False)
    for at in range(5000):
        log.send(output_event())
        assert log.held <= LIMIT + 2048, at
    log.close(terminal_event("job", 1, RunResult(JobStatus.COMPLETED, 0.0, b"{}")))
    first, *rest = log.read()
    assert isinstance(first, LogGap)
    assert [entry.seq for entry in rest if isinstance(entry, LogEntry)] == list(range(first.last + 1, 5002))
    assert log.last_seq == 5001, "and drops nothing new"


# ---- a store that is well, or only looks so


def values(count: int) -> Pipeline[..., Any]:
    @step
    def many() -> Iterator[str]:
        for _ in range(count):
            yield "z" * 1000

    @step
    def counted(found: list[str]) -> int:
        return len(found)

    @pipeline
    def counting() -> int:
        return counted(many())

    return counting


async def test_a_step_that_outruns_a_store_that_is_well_waits_and_loses_nothing() -> None:
    ledger = Ledger()
    async with inline_runs(values(5000), ledger, event_buffer=4 * LIMIT) as runs:
        inline = start(runs)
        assert (await inline.wait()).outputs == {"output": 5000}
        await recorded(runs, inline)
        assert runs.event_figures()["dropped"] == 0
    types = [body["event_type"] for body in await ledger.bodies(inline.job_id)]
    assert types.count("output") == 5000


async def test_a_step_does_not_wait_for_a_store_that_is_frozen() -> None:
    ledger = Ledger()
    ledger.thawed.clear()
    async with inline_runs(values(5000), ledger, event_buffer=4 * LIMIT) as runs:
        inline = start(runs)
        assert (await asyncio.wait_for(inline.wait(), 20)).outputs == {"output": 5000}
        dropped = runs.event_figures()["dropped"]
        assert dropped > 1000
        ledger.thawed.set()
        await recorded(runs, inline)
    assert missing(await ledger.bodies(inline.job_id)) == [dropped]


async def test_a_run_that_is_stopped_does_not_wait_on() -> None:
    ledger = Ledger()
    ledger.thawed.clear()
    seen: list[str] = []

    @step
    def endless() -> int:
        try:
            while True:
                emit("w" * 1000)
                progress(0.5)
        finally:
            seen.append("left")

    @pipeline
    def endlessly() -> int:
        return endless()

    async with inline_runs(endlessly, ledger, event_buffer=4 * LIMIT) as runs:
        inline = start(runs)
        await wait_until(lambda: inline.log.held > LIMIT // 2, description="it floods")
        inline.run.cancel()
        assert (await asyncio.wait_for(inline.wait(), 10)).status is JobStatus.CANCELED
        assert seen == ["left"]
        ledger.thawed.set()
        await recorded(runs, inline)


async def test_large_events_go_in_writes_that_stay_small() -> None:
    ledger = Ledger()

    @step
    def large() -> Iterator[str]:
        for _ in range(40):
            yield "v" * 300_000

    @pipeline
    def larger() -> list[str]:
        return large()

    async with inline_runs(larger, ledger) as runs:
        inline = start(runs)
        await inline.wait()
        await recorded(runs, inline)
    assert sum(ledger.appends) > 10_000_000
    assert max(ledger.appends) < MIB + 400_000
    types = [body["event_type"] for body in await ledger.bodies(inline.job_id)]
    assert types.count("output") == 40


# ---- runs that were opened


async def test_no_more_runs_are_opened_than_may_wait_for_their_end_to_be_written() -> None:
    ledger, ended = Ledger(), asyncio.Event()

    @step
    async def until_told() -> int:
        await ended.wait()
        return 1

    @pipeline
    async def waiting() -> int:
        return await until_told()

    ledger.finishes.clear()
    async with inline_runs(waiting, ledger, max_concurrency=1) as runs:
        opened: list[InlineRun] = []
        while runs.may_open:
            opened.append(start(runs))
            await opened[-1].keep()
            ended.set()
            await opened[-1].wait()
            await asyncio.sleep(0)  # its end is noted in the tick after
            ended.clear()
        assert len(opened) == 16

        refused = start(runs)
        with pytest.raises(StoreUnavailableError):
            await refused.keep()
        ended.set()
        await refused.wait()
        await recorded(runs, refused)
        assert all(runs.find(inline.job_id) for inline in opened)
        ledger.finishes.set()
        for inline in opened:
            await recorded(runs, inline)
        assert runs.event_figures()["bytes"] == 0
    for inline in [*opened, refused]:
        job = await ledger.get(inline.job_id)
        assert job.status is JobStatus.COMPLETED
