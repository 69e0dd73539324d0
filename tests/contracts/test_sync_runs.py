"""Synchronous runs, recorded while they run or after they have ended."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

import pytest
from tests.contracts.stores import NO_VIEW, Ports, body, finished_run, new_job, numbers, outcome
from tests.contracts.test_ledger import types
from tests.store_fixtures import wait_until

from pipeserve.errors import StaleAttemptError
from pipeserve.events import EventType
from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import Cancellation, FinishedRun, JobQuery, LogEntry
from pipeserve.runtime.recording.brief import Brief, Row


async def test_ended_runs_are_recorded_as_if_they_had_been_jobs(ports: Ports) -> None:
    now = time.time()
    runs = [finished_run(now), finished_run(now, labels={"a": "b"}), finished_run(now, keep_events=False)]
    await ports.ledger.record(runs)
    await ports.ledger.record(runs)  # a repetition changes nothing
    page = await ports.ledger.find(JobQuery(status=JobStatus.COMPLETED))
    assert page.total == 3
    job = await ports.ledger.get(runs[0].job.job_id)
    assert job is not None
    assert (job.status, job.attempt, job.outputs, job.execution_time) == (JobStatus.COMPLETED, 1, {"output": 42}, 0.25)
    assert job.progress.percent == 100.0
    assert job.created_at.timestamp() == pytest.approx(now - 0.3, abs=0.001)
    assert job.completed_at is not None
    assert job.completed_at.timestamp() == pytest.approx(now, abs=0.001)
    assert numbers(await ports.log.read(job.job_id)) == [1, 2, 3, 4]
    assert await types(ports, runs[2].job.job_id) == ["pipeline_completed"]
    figures = await ports.operations.figures()
    assert (figures.completed, figures.latency["sync"].p50) == (3, pytest.approx(0.25, rel=0.1))
    assert figures.last_execution == pytest.approx(now, abs=0.001)


async def test_any_number_of_runs_is_recorded_at_once_with_any_number_of_events(ports: Ports) -> None:
    now = time.time()
    runs = [finished_run(now + n / 1000) for n in range(45)]
    runs[7] = replace(
        runs[7], bodies=[body(runs[7].job.job_id, message=str(n)) for n in range(ports.event_log_max - 1)]
    )
    await ports.ledger.record(runs)
    page = await ports.ledger.find(JobQuery(limit=100))
    assert [job.job_id for job in page.jobs] == [run.job.job_id for run in reversed(runs)]
    assert [job.last_seq for job in page.jobs] == [
        ports.event_log_max if run is runs[7] else 4 for run in reversed(runs)
    ]
    assert numbers(await ports.log.read(runs[7].job.job_id)) == list(range(1, ports.event_log_max + 1))
    assert (await ports.operations.figures()).completed == 45


async def test_recording_nothing_is_no_error(ports: Ports) -> None:
    await ports.ledger.record([])


async def test_an_open_run_is_a_running_job_that_nobody_can_claim(ports: Ports) -> None:
    job = new_job(keep_parameters=False, parameters=b'{"text":"a-marker-to-look-for"}')
    await ports.ledger.open(job, "api")
    assert await ports.ledger.claim("worker", 5) == []
    shown = await ports.ledger.get(job.job_id)
    assert shown is not None
    assert (shown.status, shown.attempt, shown.worker, shown.last_seq) == (JobStatus.RUNNING, 1, "api", 0)
    assert b"a-marker-to-look-for" not in await ports.everything()
    await ports.ledger.append(job.job_id, 1, [body(job.job_id)], NO_VIEW)
    assert await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
    assert numbers(await ports.log.read(job.job_id)) == [1, 2]


async def test_cancelling_an_open_run_writes_no_event_between_its_owners(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.open(job, "api")
    assert await ports.ledger.cancel(job.job_id) == Cancellation(JobStatus.CANCELING, already_finished=False)
    assert await ports.log.read(job.job_id) == []
    renewal = await ports.ledger.renew("api", [job.job_id])
    assert renewal.canceling == (job.job_id,)
    assert await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id, status=JobStatus.CANCELED))


@pytest.mark.parametrize("end", ["lease", "crash", "drain"])
async def test_an_open_run_whose_process_is_gone_is_worker_lost_at_once(ports: Ports, end: str) -> None:
    job = new_job(max_attempts=3)
    await ports.ledger.open(job, "api")
    if end == "lease":
        await ports.expire_leases()
        assert await ports.ledger.claim("worker", 5) == []
    else:
        assert await ports.ledger.release("api", lost=end == "crash") == 1
    ended = await ports.ledger.get(job.job_id)
    assert ended is not None
    assert ended.error is not None
    assert (ended.status, ended.error.code) == (JobStatus.FAILED, "worker_lost")
    assert await types(ports, job.job_id) == ["pipeline_failed"]
    with pytest.raises(StaleAttemptError):
        await ports.ledger.append(job.job_id, 1, [body(job.job_id)], NO_VIEW)


async def test_a_run_whose_opening_only_seemed_to_fail_ends_as_its_caller_was_told(ports: Ports) -> None:
    now = time.time()
    run = finished_run(now, labels={"a": "b"})
    await ports.ledger.open(run.job, run.owner)  # what a frozen store does with an `open` that timed out
    follower = asyncio.create_task(_follow(ports, run.job.job_id))
    await wait_until(lambda: follower_has_joined(ports, run.job.job_id), description="the log can be followed")
    for _ in range(2):  # a repetition changes nothing
        await ports.ledger.record([run])
    await ports.expire_leases()
    assert await ports.ledger.claim("worker", 5) == []
    job = await ports.ledger.get(run.job.job_id)
    assert job is not None
    assert (job.status, job.outputs, job.execution_time) == (JobStatus.COMPLETED, {"output": 42}, 0.25)
    assert job.created_at.timestamp() == pytest.approx(now - 0.3, abs=0.001)
    assert await types(ports, run.job.job_id) == ["log", "log", "log", "pipeline_completed"]
    assert await follower == [1, 2, 3, 4]
    figures = await ports.operations.figures()
    assert (figures.completed, figures.failed, figures.jobs_by_status["running"]) == (1, 0, 0)
    assert [found.job_id for found in (await ports.ledger.find(JobQuery(labels={"a": "b"}))).jobs] == [run.job.job_id]


async def _follow(ports: Ports, job_id: str) -> list[int]:
    async with asyncio.timeout(10), ports.log.follow(job_id) as entries:
        return numbers([entry async for entry in entries])


async def follower_has_joined(ports: Ports, job_id: str) -> bool:
    async with ports.log.follow(job_id):
        return True


async def test_a_run_that_was_opened_and_has_events_gets_only_those_that_are_missing(ports: Ports) -> None:
    run = finished_run(time.time())
    bodies = list(run.bodies if not isinstance(run.bodies, Brief) else ())
    await ports.ledger.open(run.job, run.owner)
    await ports.ledger.append(run.job.job_id, 1, bodies[:2], NO_VIEW)
    await ports.ledger.record([run])
    entries = await ports.log.read(run.job.job_id)
    assert [entry.body for entry in entries if isinstance(entry, LogEntry)] == [*bodies, run.outcome.terminal_event]


def brief_run(**changes: Any) -> FinishedRun:
    """One whose events are told in brief."""
    run = finished_run(time.time(), **changes)
    rows: list[Row] = [
        (EventType.PIPELINE_STARTED, 1_700_000_000.25, None, {"pipeline_name": "serve"}),
        (EventType.STEP_STARTED, 1_700_000_000.5, "double", {}),
        (EventType.STEP_COMPLETED, 1_700_000_001.0, "double", {"cached": False, "duration": 0.5}),
    ]
    return replace(run, bodies=Brief(run.job.job_id, rows))


async def test_events_told_in_brief_are_read_from_any_position_as_if_each_had_been_added(ports: Ports) -> None:
    run = brief_run()
    job_id, events = run.job.job_id, run.bodies
    assert isinstance(events, Brief)
    await ports.ledger.record([run])
    whole = [*events.bodies(), run.outcome.terminal_event]
    assert json.loads(whole[2])["data"] == {"cached": False, "duration": 0.5}
    for after in range(5):
        for limit in (1, 2, 10):
            entries = await ports.log.read(job_id, after=after, limit=limit)
            wanted = [LogEntry(seq, whole[seq - 1]) for seq in range(after + 1, 5)][:limit]
            assert entries == wanted, (after, limit)
        async with asyncio.timeout(10), ports.log.follow(job_id, after=after) as follower:
            assert numbers([entry async for entry in follower]) == list(range(after + 1, 5))
    job = await ports.ledger.get(job_id)
    assert job is not None
    assert job.last_seq == 4


async def test_a_follower_of_an_open_run_gets_what_is_then_recorded_in_brief(ports: Ports) -> None:
    run = brief_run()
    await ports.ledger.open(run.job, run.owner)
    follower = asyncio.create_task(_follow(ports, run.job.job_id))
    assert await follower_has_joined(ports, run.job.job_id)
    await ports.ledger.record([run])
    assert await follower == [1, 2, 3, 4]


async def test_a_run_that_keeps_no_events_keeps_no_brief(ports: Ports) -> None:
    run = brief_run(keep_events=False)
    await ports.ledger.record([run])
    assert await types(ports, run.job.job_id) == ["pipeline_completed"]
    assert b"double" not in await ports.everything()


async def test_recording_ends_neither_anothers_run_nor_a_queued_job(ports: Ports) -> None:
    theirs, queued = finished_run(time.time()), finished_run(time.time())
    await ports.ledger.open(theirs.job, "another process")
    await ports.ledger.submit(queued.job)
    await ports.ledger.record([theirs, queued])
    jobs = [await ports.ledger.get(run.job.job_id) for run in (theirs, queued)]
    assert [job.status for job in jobs if job] == [JobStatus.RUNNING, JobStatus.PENDING]
    await ports.ledger.release("another process", lost=False)


@pytest.mark.parametrize("opened", [True, False])
async def test_a_run_that_its_own_process_canceled_says_who_did_it_and_why(ports: Ports, opened: bool) -> None:
    run = finished_run(time.time())
    ended = outcome(run.job.job_id, status=JobStatus.CANCELED, canceled_by="me", cancel_reason="changed my mind")
    if opened:
        await ports.ledger.open(run.job, run.owner)
        assert await ports.ledger.finish(run.job.job_id, 1, [], NO_VIEW, ended)
    else:
        await ports.ledger.record([replace(run, outcome=ended)])
    job = await ports.ledger.get(run.job.job_id)
    assert job is not None
    assert (job.status, job.canceled_by, job.cancel_reason) == (JobStatus.CANCELED, "me", "changed my mind")


@pytest.mark.parametrize("recorded", [True, False])
async def test_what_the_ledgers_own_cancel_noted_is_not_overwritten_by_the_runs_end(
    ports: Ports, recorded: bool
) -> None:
    run = finished_run(time.time())
    job = run.job
    await ports.ledger.open(job, run.owner)
    await ports.ledger.cancel(job.job_id, reason="first", by="me")
    ended = outcome(job.job_id, status=JobStatus.CANCELED, canceled_by="you", cancel_reason="second")
    if recorded:
        await ports.ledger.record([replace(run, outcome=ended)])
    else:
        assert await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, ended)
    shown = await ports.ledger.get(job.job_id)
    assert shown is not None
    assert (shown.canceled_by, shown.cancel_reason) == ("me", "first")


async def test_the_beats_of_one_process_end_the_runs_of_another_that_died(ports: Ports) -> None:
    mine, theirs = new_job(), new_job()
    await ports.ledger.open(mine, "alive")
    await ports.ledger.open(theirs, "dead")
    await ports.expire_leases()
    assert (await ports.ledger.renew("alive", [mine.job_id])).lost == ()
    jobs = [await ports.ledger.get(job.job_id) for job in (mine, theirs)]
    assert [job.status for job in jobs if job] == [JobStatus.RUNNING, JobStatus.FAILED]
    assert [job.error.code for job in jobs if job and job.error] == ["worker_lost"]
    await ports.ledger.release("alive", lost=False)
