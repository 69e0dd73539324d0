"""Runs one claimed job on the realtime runtime and records what happens, fenced by the job's attempt.

Three things can end a run before its time: a cancel (by signal, or by the ledger's flag that the heartbeat reads), a
lost lease (another attempt owns the job: stop, and write nothing), and this process's drain (stop, and leave the job
for another worker).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Protocol

from pipeserve.errors import (
    InvalidParametersError,
    JobCanceledError,
    Problem,
    StaleAttemptError,
    StepFailedError,
    StoreUnavailableError,
    WorkerLostError,
)
from pipeserve.events import Event, encode_body
from pipeserve.jobs import TERMINAL_EVENT_OF, Job, JobStatus
from pipeserve.process_log import Log
from pipeserve.runtime.backoff import Backoff
from pipeserve.runtime.cache import receipts
from pipeserve.runtime.checkpoints import JobCheckpoints
from pipeserve.runtime.executor import Run
from pipeserve.runtime.line_fields import note_job
from pipeserve.runtime.ports import Attachments, Checkpoints, Claim, JobLedger, Outcome, RunView
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.runtime.recording.event_budget import EventBudget
from pipeserve.runtime.recording.recorder import LiveRecorder
from pipeserve.runtime.run import RunRequest, RunResult
from pipeserve.runtime.run_times import RunTimes
from pipeserve.runtime.values.artifact_writer import ArtifactWriter
from pipeserve.runtime.values.artifacts import ArtifactError
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.schema import BoundParameters
from pipeserve_worker.attempt_spans import attempt_span


class Leases(Protocol):
    """Which jobs' leases are kept."""

    def add(self, job_id: str) -> None:
        """Keep this job's lease from now on."""
        ...

    def discard(self, job_id: str) -> None:
        """Keep it no more."""
        ...


@dataclass(slots=True)
class Counters:
    """What this process did, for its log."""

    completed: int = 0
    failed: int = 0
    canceled: int = 0
    fenced: int = 0
    """Attempts whose end was refused, because another attempt owned the job by then."""
    handed_back: int = 0


@dataclass(slots=True)
class _Active:
    """A job in hand."""

    claim: Claim
    accepted_at: float = field(default_factory=time.monotonic)
    run: Run | None = None
    canceling: bool = False
    lost: bool = False
    outcome: str | None = None
    """What became of it, for its trace: a status, ``handed_back`` or ``fenced``."""
    error: str | None = None
    """The code of the problem that it ended with."""
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it should end, for whatever reason."""

    def cancel(self, reason: str) -> None:
        self.stopped.set()
        if self.run is not None:
            self.run.cancel(reason)


class JobRunner:
    """The execution of one worker process: keeps its jobs' leases and runs them. Use it on the loop only."""

    def __init__(
        self,
        *,
        runtime: RealtimeRuntime,
        definition: PipelineDefinition,
        ledger: JobLedger,
        deployment_id: str,
        leases: Leases,
        log: Log,
        checkpoints: Checkpoints | None = None,
        artifacts: ArtifactWriter | None = None,
        attachments: Attachments | None = None,
    ) -> None:
        """``checkpoints``: where durable steps record their results; None: another attempt runs them again.

        ``artifacts``: writes outputs that are too large for a job's record; None: the record holds them all.
        ``attachments``: where what runs show is kept; None: nowhere.
        """
        self.counters = Counters()
        self._runtime = runtime
        self._definition = definition
        self._times = RunTimes(definition)
        self._ledger = ledger
        self._deployment_id = deployment_id
        self._leases = leases
        self._log = log
        self._checkpoints = checkpoints if any(step.checkpoint for step in definition.steps) else None
        self._artifacts = artifacts
        self._attachments = attachments
        self._budget = EventBudget(runtime.settings.event_buffer)
        self._active: dict[str, _Active] = {}
        self._handing_back = False

    def accept(self, claim: Claim) -> None:
        """A job was claimed: keep its lease, and remember a cancel that comes before its run starts."""
        self._active[claim.job_id] = _Active(claim)
        self._leases.add(claim.job_id)

    def dismiss(self, claim: Claim) -> None:
        """The job is no longer ours."""
        active = self._active.get(claim.job_id)
        if active is not None and active.claim is claim:
            del self._active[claim.job_id]
            self._leases.discard(claim.job_id)

    def cancel(self, job_id: str) -> None:
        """A caller cancels the job: stop its run, if it is here. Repeating it is harmless."""
        active = self._active.get(job_id)
        if active is not None and not active.canceling:
            active.canceling = True
            active.cancel("canceled by a caller")

    def lose(self, job_id: str) -> None:
        """The job's lease is lost: another attempt may run by now. Stop, and write nothing."""
        active = self._active.get(job_id)
        if active is not None and not active.lost:
            self._log.warning("lease lost; the run is stopped", job_id=job_id, attempt=active.claim.attempt)
            active.lost = True
            active.cancel("another attempt owns the job")

    def hand_back(self) -> None:
        """This process stops: stop all runs and leave their jobs open, for the ledger to give back."""
        self._handing_back = True
        for active in self._active.values():
            active.cancel("the worker stops")

    async def run(self, claim: Claim) -> None:
        """Run the job to its end and record that."""
        active = self._active[claim.job_id]
        note_job(claim.job_id, claim.attempt)
        with attempt_span(self._runtime.tracing, claim, self._definition.name, active):
            await self._run_claim(active, claim)

    async def _run_claim(self, active: _Active, claim: Claim) -> None:
        if claim.deployment_id != self._deployment_id:
            self._give_back_foreign(claim)
            return
        try:
            parameters = self._definition.parameters.validate_json(claim.parameters)
        except InvalidParametersError as error:
            await self._end_unstarted(active, error.problem(job_id=claim.job_id))
            return
        try:
            await self._run(active, parameters)
        except StaleAttemptError:
            self._fenced(active)

    async def refuse(self, claim: Claim, reason: str) -> None:
        """End a job as failed that the queue's engine could not start, for ``reason``."""
        self._log.error("the job can't be started", job_id=claim.job_id, reason=reason)
        problem = WorkerLostError(f"No worker could start the job: {reason}").problem(job_id=claim.job_id)
        await self._end_unstarted(self._active[claim.job_id], problem)

    async def _run(self, active: _Active, parameters: BoundParameters) -> None:
        claim = active.claim
        request = RunRequest(
            job_id=claim.job_id,
            attempt=claim.attempt,
            parameters=parameters,
            run_name=claim.run_name,
            timeout=self._runtime.settings.request_timeout if claim.timeout is None else claim.timeout,
            cache_read=claim.cache == "use",
            cache_write=claim.cache != "no-store",
            checkpoints=await self._checkpoints_of(claim),
            answered=self._artifacts is None,
            kept=self._artifacts is not None,
        )
        recorder = LiveRecorder(
            self._ledger,
            claim.job_id,
            claim.attempt,
            self._definition,
            budget=self._budget,
            attachments=self._attachments,
        )
        async with recorder:
            active.run = run = self._runtime.start(request, recorder)
            if active.canceling or active.lost or self._handing_back:
                active.cancel("stopped before its start")
            fence = asyncio.create_task(self._watch_fence(recorder, claim.job_id), name=f"fence-{claim.job_id}")
            try:
                result = await self._keep(active, run, await run.wait())
                if active.lost:
                    raise StaleAttemptError(claim.job_id)
                if self._handing_back and result.status is JobStatus.CANCELED and not active.canceling:
                    self.counters.handed_back += 1
                    active.outcome = "handed_back"
                    return
                if active.canceling and result.status is JobStatus.CANCELED:
                    result = replace(result, error=await self._why_canceled(active))
                metrics = self._definition.capture.metrics
                latencies = _latencies(active, result, self._times) if metrics else {}
                counters = receipts.counters(result.steps) if metrics else {}
                status = await recorder.finish(result, latencies, counters=counters)
                if result.kept is not None and status is not result.status and self._artifacts is not None:
                    await self._artifacts.remove(result.kept.artifacts)  # a cancel won: nothing refers to them
            finally:
                fence.cancel()
        self._count(status)
        active.outcome = status.value
        active.error = None if result.error is None or status is JobStatus.CANCELED else result.error.code
        self._log.info(
            "job ended",
            job_id=claim.job_id,
            attempt=claim.attempt,
            status=status.value,
            execution_time=round(result.execution_time, 6),
            parameters_applied=",".join(result.applied),
        )

    async def _keep(self, active: _Active, run: Run, result: RunResult) -> RunResult:
        """Write the artifacts of a run that has ended: its result, or how it ends without one."""
        if self._artifacts is None or result.kept is None or not result.kept.artifacts:
            return result
        without = replace(result, status=JobStatus.CANCELED, outputs_json=None, kept=None)
        try:
            seconds = max(run.remaining(), 0)
            written = await self._artifacts.write(result.kept.artifacts, seconds=seconds, stop=active.stopped)
        except ArtifactError as error:
            self._log.error("the job's artifacts could not be written", job_id=run.job_id, reason=str(error))
            kind = str(error).partition(":")[0]  # the rest may name places that are no caller's business
            failed = StepFailedError(f"An output is too large for the job's record, and could not be kept ({kind}).")
            return replace(without, status=JobStatus.FAILED, error=failed.problem(job_id=run.job_id))
        return result if written else without

    async def _checkpoints_of(self, claim: Claim) -> JobCheckpoints | None:
        """What earlier attempts at the job have recorded; waits for a store that is away, as the run's end would."""
        if self._checkpoints is None:
            return None
        return await JobCheckpoints.load(self._checkpoints, claim.job_id, claim.attempt, self._runtime.codec)

    async def _watch_fence(self, recorder: LiveRecorder, job_id: str) -> None:
        await recorder.lost.wait()
        self.lose(job_id)

    async def _end_unstarted(self, active: _Active, problem: Problem) -> None:
        """Record the job as failed though no step ran; as canceled if a cancel came first."""
        claim = active.claim
        backoff = Backoff(0.05, 1.0)
        status = JobStatus.FAILED
        while not active.lost:
            try:
                if await self._ledger.finish(
                    claim.job_id, claim.attempt, (), RunView(), _outcome(claim, status, problem)
                ):
                    self._count(status)
                    active.outcome = status.value
                    active.error = None if status is JobStatus.CANCELED else problem.code
                    self._log.info("job ended", job_id=claim.job_id, attempt=claim.attempt, status=status.value)
                    return
                status, problem = JobStatus.CANCELED, await self._why_canceled(active)
            except StaleAttemptError:
                break
            except StoreUnavailableError:
                await asyncio.sleep(backoff.next())
        self._fenced(active)

    async def _why_canceled(self, active: _Active) -> Problem:
        """A cancel in words, with its reason: the ledger knows it, the signal does not carry it."""
        backoff = Backoff(0.05, 1.0)
        job: Job | None = None
        while not active.lost:
            try:
                job = await self._ledger.get(active.claim.job_id)
                break
            except StoreUnavailableError:  # then the run's end can't be written now either
                await asyncio.sleep(backoff.next())
        reason = None if job is None else job.cancel_reason
        detail = None if reason is None else f"The job was canceled: {reason}"
        return JobCanceledError(detail).problem(job_id=active.claim.job_id)

    def _give_back_foreign(self, claim: Claim) -> None:
        """A job of another deployment: without a lease it goes back to the queue of those that have its code."""
        self._leases.discard(claim.job_id)
        self._log.error(
            "refused a job of another deployment; its lease runs out and another worker takes it",
            job_id=claim.job_id,
            deployment_id=claim.deployment_id,
            own_deployment_id=self._deployment_id,
        )

    def _fenced(self, active: _Active) -> None:
        claim, active.outcome = active.claim, "fenced"
        self.counters.fenced += 1
        self._log.warning("attempt fenced; nothing was written", job_id=claim.job_id, attempt=claim.attempt)

    def _count(self, status: JobStatus) -> None:
        if status is JobStatus.COMPLETED:
            self.counters.completed += 1
        elif status is JobStatus.CANCELED:
            self.counters.canceled += 1
        else:
            self.counters.failed += 1


def _latencies(active: _Active, result: RunResult, times: RunTimes) -> dict[str, list[float]]:
    """What this run adds to the service's figures, in seconds."""
    pickup = max(active.claim.claimed_at - active.claim.due_at, 0.0)
    latencies = {"async": [pickup + time.monotonic() - active.accepted_at], **times.of(result)}
    if active.claim.attempt == 1:  # later ones have waited for a lease or a backoff, not for a worker
        latencies["pickup"] = [pickup]
    return latencies


def _outcome(claim: Claim, status: JobStatus, problem: Problem) -> Outcome:
    terminal = Event(
        event_type=TERMINAL_EVENT_OF[status],
        job_id=claim.job_id,
        attempt=claim.attempt,
        message=problem.detail,
        error=problem,
    )
    return Outcome(status=status, terminal_event=encode_body(terminal), execution_time=0.0, error=problem)
