"""When a live job will have ended: the maths by themselves, then what a service reads and shows."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.away import AwayStore
from tests.api.harness import frames, serving, wait_until
from tests.api.pipelines import gated, secretive, shout
from tests.api.worker import working

from pipeserve import Stream, pipeline, step
from pipeserve.errors import StoreUnavailableError
from pipeserve.jobs import Job, JobStatus, Links, StepReport
from pipeserve.runtime.latency import histogram
from pipeserve.runtime.memory import MemoryStore
from pipeserve.runtime.plan import compile_plan
from pipeserve.runtime.ports import ServiceFigures, WorkerInfo
from pipeserve.runtime.step_spec import StepSpecs
from pipeserve.sdk.capture import Capture
from pipeserve.sdk.context import get_context
from pipeserve_api.eta import Call, Durations, Estimator, Graph, Measured, Range, Running, Waiting
from pipeserve_api.forecast import FRESH, Forecast, graph_of, measured, outlook

SECONDS = st.floats(1e-4, 1e4)
TIMES = st.lists(SECONDS, min_size=5, max_size=40)
DIAMOND = Graph(
    [
        Call("start", "start"),
        Call("left", "left", ("start",)),
        Call("right", "right", ("start",)),
        Call("join", "join", ("left", "right")),
    ]
)


def known(drain_rate: float | None = 1.0, **times: float | list[float]) -> Measured:
    """Each step, or the whole ``run``, measured so; a single number: nine times."""
    durations = {
        name if name == "run" else f"step/{name}": histogram(seconds if isinstance(seconds, list) else [seconds] * 9)
        for name, seconds in times.items()
    }
    return Measured(durations, drain_rate)


DIAMOND_KNOWN = known(start=1.0, left=4.0, right=2.0, join=1.0)


def estimate(graph: Graph, measured: Measured, job: Waiting | Running) -> Range:
    found = Estimator(graph, measured).of(job)
    assert found is not None
    return found


def about(seconds: float) -> Any:
    """A bucket is a tenth wide."""
    return pytest.approx(seconds, rel=0.1)


# ---- one histogram


@given(TIMES, st.floats(0.001, 0.999))
def test_a_share_of_a_histogram_is_found_again(times: list[float], share: float):
    durations = Durations(histogram(times))
    assert durations.share_below(durations.at(share)) == pytest.approx(share, abs=1e-6)


@given(TIMES, st.floats(0, 1e6), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_what_is_left_is_never_negative_and_grows_with_the_share(
    times: list[float], elapsed: float, share: float, other: float
):
    first, second = Durations(histogram(times)).left(elapsed, sorted((share, other)))
    assert 0 <= first <= second


def test_what_has_lasted_longer_than_most_will_last_as_long_as_the_few_that_were_longer():
    durations = Durations(histogram([1.0] * 90 + [100.0] * 10))
    assert durations.left(0.0, [0.5])[0] == about(1)
    assert durations.left(2.0, [0.5])[0] == about(98)


def test_what_has_lasted_longer_than_all_is_expected_to_last_the_longer():
    durations = Durations(histogram([1.0] * 9))
    [short], [long] = durations.left(10.0, [0.5]), durations.left(20.0, [0.5])
    assert 0 < short < long


# ---- a job that runs


def test_parallel_branches_overlap():
    assert estimate(DIAMOND, DIAMOND_KNOWN, Running(0.0, {})) == (about(6), about(6))


def test_only_what_is_still_to_end_counts():
    steps = {"start": None, "left": None, "right": 0.5}
    assert estimate(DIAMOND, DIAMOND_KNOWN, Running(9.0, steps)) == (about(2.5), about(2.5))
    assert estimate(DIAMOND, DIAMOND_KNOWN, Running(9.0, dict.fromkeys(("start", "left", "right", "join")))) == (0, 0)


def test_a_record_that_lists_the_newest_steps_only_still_tells_what_was_before():
    assert estimate(DIAMOND, DIAMOND_KNOWN, Running(9.0, {"join": 0.0})) == (about(1), about(1))


def test_a_step_that_reads_anothers_yields_runs_beside_it():
    graph = Graph([Call("words", "words"), Call("count", "count", beside=("words",)), Call("end", "end", ("count",))])
    figures = known(words=4.0, count=1.0, end=1.0)
    assert estimate(graph, figures, Running(0.0, {})) == (about(5), about(5))
    slow = known(words=1.0, count=4.0, end=1.0)
    assert estimate(graph, slow, Running(0.0, {})) == (about(5), about(5))


def test_the_slow_half_of_a_step_shows_in_the_ninth_decile():
    p50, p90 = estimate(Graph([Call("a", "a")]), known(a=[1.0] * 80 + [30.0] * 20), Running(0.0, {}))
    assert (p50, p90) == (about(1), about(30))


def test_two_calls_of_one_step_are_drawn_apart():
    times = [1.0] * 50 + [9.0] * 50
    two = Graph([Call("a", "a"), Call("a_2", "a", ("a",))])
    p50, p90 = estimate(two, known(a=times), Running(0.0, {}))
    assert (p50, p90) == (about(10), about(18))  # drawn together it would be 2 or 18


def test_a_pipeline_without_a_graph_goes_by_whole_runs():
    figures = known(run=10.0)
    assert estimate(Graph(), figures, Running(4.0, {})) == (pytest.approx(6, abs=1), pytest.approx(6, abs=1))
    p50, p90 = estimate(Graph(), figures, Waiting())
    assert (p50, p90) == (about(11), pytest.approx(12.6, rel=0.1))


def test_a_step_that_was_seldom_seen_leaves_it_to_whole_runs():
    figures = known(start=1.0, left=[4.0] * 4, right=2.0, join=1.0, run=7.0)
    assert estimate(DIAMOND, figures, Running(3.0, {"start": None})) == (about(4), about(4))


def test_steps_that_are_not_recorded_leave_it_to_whole_runs():
    figures = replace(DIAMOND_KNOWN, durations={**DIAMOND_KNOWN.durations, "run": histogram([10.0] * 9)})
    assert estimate(DIAMOND, figures, Running(7.0, None)) == (pytest.approx(3, abs=1), pytest.approx(3, abs=1))


@pytest.mark.parametrize("job", [Waiting(), Running(0.0, {}), Running(1.0, None)])
@pytest.mark.parametrize("graph", [Graph(), DIAMOND])
def test_nothing_is_said_where_too_little_was_measured(graph: Graph, job: Waiting | Running):
    few = known(start=[1.0] * 4, left=[1.0] * 4, right=[1.0] * 4, join=[1.0] * 4, run=[1.0] * 4)
    assert Estimator(graph, few).of(job) is None


# ---- a job that waits


def test_it_waits_for_the_turns_before_its_own():
    p50, p90 = estimate(DIAMOND, replace(DIAMOND_KNOWN, drain_rate=2.0), Waiting(position=199))
    assert p50 == pytest.approx(106, rel=0.05)
    assert p50 < p90 < 130


def test_it_waits_for_nothing_where_a_worker_has_room():
    figures = replace(DIAMOND_KNOWN, drain_rate=None, slots=4, free_slots=2)
    assert estimate(DIAMOND, figures, Waiting(position=1)) == (about(6), about(6))


def test_nothing_is_said_of_the_wait_where_no_worker_takes_jobs():
    for figures in (replace(DIAMOND_KNOWN, drain_rate=None), replace(DIAMOND_KNOWN, drain_rate=0.0)):
        assert Estimator(DIAMOND, figures).of(Waiting(position=3)) is None
        assert Estimator(DIAMOND, figures).of(Running(0.0, {})) is not None


def test_a_service_that_had_little_to_do_is_taken_to_be_able_to_do_more():
    figures = replace(known(run=1.0), drain_rate=0.1, slots=10)
    burst = estimate(Graph(), figures, Waiting(position=99))
    backlog = estimate(Graph(), replace(figures, oldest_job_age=600.0), Waiting(position=99))
    assert burst[0] == pytest.approx(11, rel=0.1)
    assert backlog[0] == pytest.approx(1001, rel=0.1)


def test_a_scheduled_job_waits_for_its_time_first():
    p50, _ = estimate(DIAMOND, replace(DIAMOND_KNOWN, free_slots=1, slots=1), Waiting(due_in=3600))
    assert p50 == pytest.approx(3606, abs=1)


@given(TIMES, st.integers(0, 10_000), st.integers(0, 10_000), st.floats(0.01, 1000), st.integers(0, 8))
def test_a_job_further_back_is_never_expected_sooner(times: list[float], one: int, other: int, rate: float, free: int):
    estimator = Estimator(Graph(), replace(known(run=times), drain_rate=rate, slots=8, free_slots=free))
    (first, late), (second, later) = (estimator.of(Waiting(place)) or (0, 0) for place in sorted((one, other)))
    assert first <= second
    assert late <= later


@given(TIMES, TIMES, st.one_of(st.none(), SECONDS), st.floats(0.01, 1000))
def test_the_median_is_never_beyond_the_ninth_decile_and_no_time_is_negative(
    left: list[float], right: list[float], elapsed: float | None, rate: float
):
    figures = known(rate, start=1.0, left=left, right=right, join=right, run=left)
    for job in (Waiting(3), Running(1.0, {}), Running(1.0, {"start": None, "left": elapsed}), Running(1.0, None)):
        p50, p90 = estimate(DIAMOND, figures, job)
        assert 0 <= p50 <= p90


def test_the_same_figures_give_the_same_answer():
    figures = known(start=[1.0, 2.0, 3.0] * 5, left=[1.0, 9.0] * 5, right=1.0, join=[0.1, 5.0] * 5)
    answers = {estimate(DIAMOND, figures, Waiting(5)) for _ in range(3)}
    assert len(answers) == 1


# ---- where a job is


@step
def words(text: str):
    yield from text.split()


@step
def count(found: Stream[str]) -> int:
    return sum(1 for _ in found)


@pipeline
def reading(text: str) -> int:
    return count(words(text))


def test_the_graph_of_a_pipeline_tells_what_runs_beside_what():
    shouting = graph_of(compile_plan(shout.definition, StepSpecs(shout.definition)))
    assert shouting.calls == (Call("upper", "upper"), Call("length", "length", after=("upper",)))
    streaming = graph_of(compile_plan(reading.definition, StepSpecs(reading.definition)))
    assert streaming.calls == (Call("words", "words"), Call("count", "count", beside=("words",)))


NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def job(status: JobStatus, **members: Any) -> Job:
    found: dict[str, Any] = {
        "job_id": "0199",
        "run_id": "0199",
        "run_name": "test",
        "status": status,
        "pipeline_name": "diamond",
        "deployment_id": "d",
        "created_at": NOW - timedelta(seconds=60),
        "links": Links.of("0199"),
    }
    return Job(**(found | members))


def test_a_pending_job_is_where_its_record_says():
    assert outlook(job(JobStatus.PENDING, queue_position=3), NOW, steps=True) == Waiting(3)
    later = job(JobStatus.PENDING, run_at=NOW + timedelta(seconds=90))
    assert outlook(later, NOW, steps=True) == Waiting(0, 90.0)
    past = job(JobStatus.PENDING, run_at=NOW - timedelta(seconds=90))
    assert outlook(past, NOW, steps=True) == Waiting(0, 0.0)


def test_a_running_job_is_as_far_as_its_newest_attempt():
    def call(name: str, seconds: float, attempt: int, status: str) -> StepReport:
        return StepReport(name=name, status=status, attempt=attempt, started_at=NOW - timedelta(seconds=seconds))

    steps = [call("a", 30, 1, "running"), call("a", 8, 2, "completed"), call("b", 5, 2, "running")]
    running = job(JobStatus.RUNNING, attempt=2, started_at=NOW - timedelta(seconds=40), steps=steps)
    assert outlook(running, NOW, steps=True) == Running(8.0, {"a": None, "b": 5.0})
    assert outlook(running, NOW, steps=False) == Running(8.0, None)
    first = job(JobStatus.RUNNING, attempt=1, started_at=NOW - timedelta(seconds=40))
    assert outlook(first, NOW, steps=True) == Running(40.0, {})


def test_room_is_counted_over_all_workers():
    workers = [WorkerInfo(name, "host", 1, "", busy, 4) for name, busy in (("a", 4), ("b", 1), ("c", 5))]
    found = measured(replace(FIGURES, workers=workers))
    assert (found.slots, found.free_slots) == (12, 3)


# ---- what is read, and how often

FIGURES = ServiceFigures(
    completed=9,
    failed=0,
    canceled=0,
    execution_seconds=9.0,
    jobs_by_status={},
    queue_depth=0,
    oldest_job_age=0.0,
    last_execution=None,
    latency={},
    workers=(),
    drain_rate=1.0,
    durations={"run": histogram([2.0] * 9)},
)


class Operations:
    """Tells ``figures``, after ``opened``; counts the questions."""

    def __init__(self) -> None:
        self.asked = 0
        self.away = False
        self.opened = asyncio.Event()
        self.opened.set()

    async def figures(self) -> ServiceFigures:
        self.asked += 1
        await self.opened.wait()
        if self.away:
            raise StoreUnavailableError("away")
        return FIGURES


PENDING = job(JobStatus.PENDING, queue_position=0)


def forecast(operations: Any, clock: list[float], capture: Capture | None = None) -> Forecast:
    return Forecast(operations, capture or Capture(), None, clock=lambda: clock[0])


async def test_many_who_look_at_once_ask_the_store_once():
    operations, clock = Operations(), [0.0]
    async with forecast(operations, clock) as found:
        jobs = await asyncio.gather(*(found.of(PENDING) for _ in range(20)))
        assert all(job.eta is not None for job in jobs)
        await found.of(PENDING)
        assert operations.asked == 1
        clock[0] += FRESH
        await found.of(PENDING)
        assert operations.asked == 2


async def test_a_store_that_is_away_is_not_asked_again_at_once():
    operations, clock = Operations(), [0.0]
    async with forecast(operations, clock) as found:
        assert (await found.of(PENDING)).eta is not None
        clock[0] += FRESH
        operations.away = True
        assert await found.of(PENDING) is PENDING
        assert await found.of(PENDING) is PENDING
        assert operations.asked == 2


async def test_a_store_that_hangs_holds_up_one_look_for_a_moment_and_the_next_ones_not_at_all():
    operations, clock = Operations(), [0.0]
    operations.opened.clear()
    async with forecast(operations, clock) as found:
        assert (await found.of(PENDING)).eta is None
        clock[0] += 1
        for _ in range(100):
            assert (await found.of(PENDING)).eta is None
        assert operations.asked == 1
        operations.opened.set()

        async def told() -> bool:
            return (await found.of(PENDING)).eta is not None

        await wait_until(told, "the answer has come")


async def test_figures_that_make_no_sense_make_no_job_unreadable(caplog: pytest.LogCaptureFixture):
    class Broken(Operations):
        async def figures(self) -> ServiceFigures:
            return replace(FIGURES, durations=None)

    async with forecast(Broken(), [0.0]) as found:
        assert await found.of(PENDING) is PENDING
    assert "figures could not be read" in caplog.text


@pytest.mark.parametrize("capture", [Capture(metrics=False), Capture(memory_only=True)])
async def test_a_pipeline_that_is_not_measured_asks_nothing(capture: Capture):
    operations = Operations()
    async with forecast(operations, [0.0], capture) as found:
        assert await found.of(PENDING) is PENDING
    assert operations.asked == 0


@pytest.mark.parametrize("status", [status for status in JobStatus if status not in ("pending", "running")])
async def test_a_job_that_does_not_go_on_has_none(status: JobStatus):
    operations = Operations()
    async with forecast(operations, [0.0]) as found:
        assert (await found.of(job(status))).eta is None
    assert operations.asked == 0


# ---- over HTTP


class MeasuredStore(MemoryStore):
    """Says that the pipeline's runs and steps have been measured."""

    def __init__(self) -> None:
        super().__init__()
        figures = self.operations.figures

        async def told() -> ServiceFigures:
            durations = {kind: histogram([2.0] * 9) for kind in ("run", "step/hold")}
            return replace(await figures(), drain_rate=2.0, durations=durations)

        self.operations.figures = told


async def test_a_live_job_shows_its_eta_and_a_listing_shows_none():
    held, gate = gated()
    async with serving(held, backend=MeasuredStore()) as service:
        job_id = await service.submit({"text": "a"})
        waiting = (await service.http.get(f"/jobs/{job_id}")).json()["eta"]
        assert waiting["p50"] == pytest.approx(2.5, rel=0.1)
        assert waiting["p50"] < waiting["p90"]
        assert (await service.http.get("/jobs")).json()["jobs"][0]["eta"] is None
        async with working(service):
            await wait_until(gate.entered.is_set, "it runs")
            running = (await service.http.get(f"/jobs/{job_id}")).json()["eta"]
            assert 0 <= running["p50"] <= running["p90"] < waiting["p90"]
            gate.opened.set()
            ended = (await service.http.get(f"/jobs/{job_id}?wait=10")).json()
            assert (ended["status"], ended["eta"]) == ("completed", None)


async def test_a_snapshot_shows_the_eta():
    held, gate = gated()
    async with serving(held, backend=MeasuredStore()) as service, working(service):
        job_id = await service.submit({"text": "a"})
        await wait_until(gate.entered.is_set, "it runs")
        async with service.http.stream("GET", f"/stream/{job_id}") as stream:
            text = ""
            async for part in stream.aiter_text():
                text += part
                gate.opened.set()
        [snapshot] = [frame for frame in frames(text) if frame.get("event") == "snapshot"]
        assert orjson.loads(snapshot["data"])["eta"]["p50"] >= 0


async def test_a_synchronous_call_can_be_looked_at_while_the_store_is_away():
    job_ids: list[str] = []
    go_on = asyncio.Event()

    @step
    async def wait() -> bool:
        job_ids.append(get_context().job_id)
        return await go_on.wait()

    @pipeline
    def waiting():
        return wait()

    async with serving(waiting, backend=AwayStore()) as service:
        call = asyncio.create_task(service.invoke())
        await wait_until(lambda: job_ids, "it runs")
        answer = await service.http.get(f"/jobs/{job_ids[0]}")
        assert (answer.status_code, answer.json()["eta"]) == (200, None)
        go_on.set()
        assert (await call).status_code == 200


async def test_jobs_that_ran_are_what_the_next_is_measured_by():
    async with serving(secretive) as service:
        for _ in range(6):
            await service.invoke({"text": "a"})
        job_id = await service.submit({"text": "a"})
        assert (await service.http.get(f"/jobs/{job_id}")).json()["eta"] is None  # nothing of it is kept
    async with serving(shout) as service:
        for _ in range(6):
            await service.invoke({"text": "a"})

        async def counted() -> bool:
            return (await service.http.get("/metrics")).json()["successful_executions"] == 6

        await wait_until(counted, "the runs are counted")
        job_id = await service.submit({"text": "a"})
        await service.store.ledger.claim("a-worker", 1)
        eta = (await service.http.get(f"/jobs/{job_id}")).json()["eta"]
        assert 0 <= eta["p50"] <= eta["p90"] < 5
