"""One claimed job, in this process, on a real store: what is written, and when nothing is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.worker.harness import PIPELINES, Scene, eventually, lines, scene

from pipeserve.jobs import JobStatus
from pipeserve.process_log import get_log
from pipeserve.runtime.ports import Claim
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.sdk.target import load_target
from pipeserve.settings import RuntimeSettings
from pipeserve_worker.runner import JobRunner


class Kept:
    """Leases that only note which jobs are kept."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    def add(self, job_id: str) -> None:
        self.ids.add(job_id)

    def discard(self, job_id: str) -> None:
        self.ids.discard(job_id)


class Stage:
    """A runner on a scene, and the files that its jobs use."""

    def __init__(self, at: Scene, runner: JobRunner, leases: Kept) -> None:
        self.at = at
        self.runner = runner
        self.leases = leases
        self.started = at.folder / "started"
        self.until = at.folder / "until"

    async def claim(self, **parameters: Any) -> Claim:
        """One job, submitted and claimed by "me", and accepted by the runner."""
        given = parameters or {"started": str(self.started), "until": str(self.until)}
        await self.at.submit(**given)
        [claim] = await self.at.jobs.ledger.claim("me", 1)
        self.runner.accept(claim)
        return claim

    @contextlib.asynccontextmanager
    async def running(self, claim: Claim) -> AsyncIterator[asyncio.Task[None]]:
        """The job's run, once its step has started."""
        task = asyncio.create_task(self.runner.run(claim))
        await eventually(lambda: lines(self.started), "it runs")
        yield task
        await task
        self.runner.dismiss(claim)


@contextlib.asynccontextmanager
async def stage(pipeline: str) -> AsyncIterator[Stage]:
    definition = load_target(f"{PIPELINES}:{pipeline}").pipeline.definition
    async with (
        scene(pipeline) as at,
        RealtimeRuntime(definition, RuntimeSettings.from_environment()) as runtime,
    ):
        leases = Kept()
        runner = JobRunner(
            runtime=runtime,
            definition=definition,
            ledger=at.jobs.ledger,
            deployment_id=at.deployment.id,
            leases=leases,
            log=get_log("pipeserve_worker"),
        )
        yield Stage(at, runner, leases)


async def test_a_job_is_run_and_recorded_with_its_latencies():
    async with stage("quick") as on:
        claim = await on.claim(path=str(on.started))
        assert on.leases.ids == {claim.job_id}
        await on.runner.run(claim)
        on.runner.dismiss(claim)
        assert on.leases.ids == set()
        job = await on.at.job(claim.job_id)
        assert job.status is JobStatus.COMPLETED
        assert job.outputs == {"output": "written"}
        assert on.runner.counters.completed == 1
        latency = (await on.at.jobs.operations.figures()).latency
        assert all(latency[kind].p50 is not None for kind in ("async", "pickup", "step", "run", "step/write"))


async def test_a_job_was_picked_up_late_by_when_it_was_due_not_by_when_it_was_accepted():
    async with stage("quick") as on:
        claim = await on.claim(path=str(on.started))
        scheduled = replace(claim, created_at=claim.claimed_at - 3600, due_at=claim.claimed_at - 2)
        on.runner.accept(scheduled)
        await on.runner.run(scheduled)
        on.runner.dismiss(scheduled)
        pickup = (await on.at.jobs.operations.figures()).latency["pickup"].p50
        assert pickup == pytest.approx(2, rel=0.1)


async def test_a_job_in_memory_only_keeps_its_end_and_nothing_before():
    async with stage("quick_in_memory") as on:
        claim = await on.claim(path=str(on.started))
        await on.runner.run(claim)
        assert (await on.at.job(claim.job_id)).outputs == {"output": "written"}
        assert await on.at.log(claim.job_id) == ["pipeline_completed"]


async def test_parameters_that_do_not_fit_end_the_job_with_each_of_them_named():
    async with stage("quick") as on:
        claim = await on.claim(path=str(on.started), seconds="soon")
        await on.runner.run(claim)
        job = await on.at.job(claim.job_id)
        assert job.error is not None
        assert job.error.code == "invalid_parameters"
        assert [item["name"] for item in job.error.errors or []] == ["seconds"]
        assert await on.at.terminal_events(claim.job_id) == ["pipeline_failed"]


async def test_a_cancel_between_claim_and_start_is_not_forgotten():
    async with stage("hold_async") as on:
        claim = await on.claim()
        await on.at.jobs.ledger.cancel(claim.job_id)
        on.runner.cancel(claim.job_id)
        await on.runner.run(claim)
        assert (await on.at.job(claim.job_id)).status is JobStatus.CANCELED


async def test_a_cancel_that_the_run_outran_still_wins():
    async with stage("quick") as on:
        claim = await on.claim(path=str(on.started))
        await on.at.jobs.ledger.cancel(claim.job_id)  # and no signal reaches the runner
        await on.runner.run(claim)
        job = await on.at.job(claim.job_id)
        assert job.status is JobStatus.CANCELED
        assert job.outputs is None


async def test_a_lost_lease_stops_the_run_and_writes_nothing():
    async with stage("hold_async") as on:
        claim = await on.claim()
        async with on.running(claim):
            on.runner.lose(claim.job_id)
        assert on.runner.counters.fenced == 1
        assert (await on.at.job(claim.job_id)).status is JobStatus.RUNNING


async def test_an_attempt_that_was_taken_over_is_stopped_by_the_first_refused_write():
    async with stage("hold_async") as on:
        claim = await on.claim()
        task = asyncio.create_task(on.runner.run(claim))
        await on.at.jobs.ledger.release("me", lost=True)
        [taken] = await on.at.jobs.ledger.claim("other", 1)
        await task
        assert taken.attempt == 2
        assert on.runner.counters.fenced == 1
        job = await on.at.job(claim.job_id)
        assert (job.status, job.worker) == (JobStatus.RUNNING, "other")


async def test_handing_back_stops_the_run_and_leaves_the_job_open():
    async with stage("hold_async") as on:
        claim = await on.claim()
        async with on.running(claim):
            on.runner.hand_back()
        assert on.runner.counters.handed_back == 1
        assert (await on.at.job(claim.job_id)).status is JobStatus.RUNNING
        assert await on.at.jobs.ledger.release("me", lost=False) == 1
        assert (await on.at.job(claim.job_id)).status is JobStatus.PENDING


async def test_a_run_that_ends_by_itself_while_its_worker_hands_back_is_recorded():
    async with stage("stubborn") as on:
        claim = await on.claim()
        async with on.running(claim):
            await asyncio.to_thread(Path.touch, on.until)
            await eventually(lambda: on.runner.counters.completed == 1, "it ends")
            on.runner.hand_back()
        assert (await on.at.job(claim.job_id)).status is JobStatus.COMPLETED


async def test_a_job_of_another_deployment_is_not_run_and_its_lease_not_kept():
    async with stage("quick") as on:
        claim = await on.claim(path=str(on.started))
        await on.runner.run(replace(claim, deployment_id="another"))
        assert lines(on.started) == []
        assert on.leases.ids == set()
        assert (await on.at.job(claim.job_id)).status is JobStatus.RUNNING


async def test_a_job_that_cannot_be_started_ends_as_failed_with_the_reason():
    async with stage("quick") as on:
        claim = await on.claim(path=str(on.started))
        await on.runner.refuse(claim, "job expired")
        job = await on.at.job(claim.job_id)
        assert job.status is JobStatus.FAILED
        assert job.error is not None
        assert "job expired" in job.error.detail
        assert await on.at.terminal_events(claim.job_id) == ["pipeline_failed"]


async def test_a_canceled_job_says_why_it_was_canceled():
    async with stage("hold_async") as on:
        claim = await on.claim()
        async with on.running(claim):
            await on.at.jobs.ledger.cancel(claim.job_id, reason="enough of it", by="me")
            on.runner.cancel(claim.job_id)
        job = await on.at.job(claim.job_id)
        assert job.error is not None
        assert job.error.detail == "The job was canceled: enough of it"


async def test_a_job_that_was_canceled_before_it_could_fail_to_start_says_so():
    async with stage("quick") as on:
        claim = await on.claim(path=str(on.started), seconds="soon")
        await on.at.jobs.ledger.cancel(claim.job_id, reason="enough of it")
        await on.runner.run(claim)
        job = await on.at.job(claim.job_id)
        assert job.status is JobStatus.CANCELED
        assert job.error is not None
        assert (job.error.code, job.error.detail) == ("canceled", "The job was canceled: enough of it")


async def test_stored_parameters_that_are_no_json_end_the_job_as_invalid():
    async with stage("quick") as on:
        await on.at.submit(raw=b'{"path":"p","seconds":inf}')
        [claim] = await on.at.jobs.ledger.claim("me", 1)
        on.runner.accept(claim)
        await on.runner.run(claim)
        job = await on.at.job(claim.job_id)
        assert job.error is not None
        assert job.error.code == "invalid_parameters"


async def test_parameters_are_read_as_json_where_a_date_is_text_and_integers_have_any_size():
    async with stage("exact") as on:
        await on.at.submit(raw=b'{"number":1234567890123456789012345678901,"day":"2026-01-31"}')
        [claim] = await on.at.jobs.ledger.claim("me", 1)
        on.runner.accept(claim)
        await on.runner.run(claim)
        assert (await on.at.job(claim.job_id)).outputs == {"output": "1234567890123456789012345678901 2026-01-31"}


async def test_a_pipeline_that_captures_no_metrics_adds_none():
    async with stage("exact") as on:
        claim = await on.claim(number=1, day="2026-01-31")
        await on.runner.run(claim)
        assert (await on.at.job(claim.job_id)).status is JobStatus.COMPLETED
        assert dict((await on.at.jobs.operations.figures()).latency) == {}
