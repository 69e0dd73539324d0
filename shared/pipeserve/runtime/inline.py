"""The synchronous runs of one API process: executed here, known here first, told to the store in the background.

A run that ends quickly is recorded whole, after its answer. One that lasts is *opened* in the ledger, under a lease, so
that ``/jobs`` and ``/stream`` of every replica show it while it runs; so is one whose caller is answered with a 202. A
memory-only run is told to nobody, unless it became a 202.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self

from pydantic_core import from_json

from pipeserve.errors import DrainingError, OverloadedError, StaleAttemptError, StoreUnavailableError
from pipeserve.events import Event, EventType, encode_body
from pipeserve.jobs import Job, JobStatus, Links, new_job_id
from pipeserve.runtime.breaker import CircuitBreaker
from pipeserve.runtime.cache import receipts
from pipeserve.runtime.executor import Run
from pipeserve.runtime.ports import (
    Attachment,
    Attachments,
    CacheUse,
    Cancellation,
    FinishedRun,
    JobLedger,
    Leases,
    NewJob,
    Outcome,
)
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.runtime.recording.brief import Brief
from pipeserve.runtime.recording.event_budget import EventBudget
from pipeserve.runtime.recording.publisher import Publisher
from pipeserve.runtime.recording.quiet_log import QuietLog
from pipeserve.runtime.recording.recorder import LiveRecorder
from pipeserve.runtime.recording.run_log import Home, RunLog
from pipeserve.runtime.recording.run_view import STEPS_SHOWN, final_view, step_report, terminal_event
from pipeserve.runtime.run import RunRequest, RunResult
from pipeserve.runtime.values.artifact_ref import Artifact
from pipeserve.runtime.values.artifact_writer import ArtifactWriter
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.schema import BoundParameters
from pipeserve.settings import RuntimeSettings

_log = logging.getLogger(__name__)
_AT_A_STRETCH = 8  # runs that are made ready to be recorded before those who call get a turn
_OPEN_AGAIN = 1.0  # seconds after a try that failed
_OPEN_AFTER = 0.25  # seconds: a run that lasts longer is worth a record of its own while it runs
_SETTLING_PER_SLOT = 16  # opened runs that have ended and wait for the store; beyond, none is opened
_RUN_BYTES = 10_000  # of a run without its values, steps and log, and of a step's record; measured
_STEP_BYTES = 300


@dataclass(frozen=True, slots=True)
class LocalFigures:
    """What this process has run and the store does not count: memory-only runs."""

    completed: int = 0
    failed: int = 0
    canceled: int = 0
    execution_seconds: float = 0.0
    last_execution: float | None = None
    """Unix time at which the last one ended."""
    counters: Mapping[str, float] = field(default_factory=dict[str, float])
    """The totals of what they counted, as :attr:`~pipeserve.runtime.ports.Outcome.counters`."""


class InlineRun:
    """One synchronous run of this process."""

    def __init__(self, runs: InlineRuns, job: NewJob, quiet_log: QuietLog, run: Run) -> None:
        self.job = job
        self.job_id = job.job_id
        self.quiet_log = quiet_log
        self.run = run
        self.created_at = time.time()
        self.completed_at: float | None = None
        self.result: RunResult | None = None
        self.canceled_by: str | None = None
        self.cancel_reason: str | None = None
        self.charged = 0
        """Bytes of the event budget that the run itself takes, apart from a log."""
        self._runs = runs
        self._recording: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[None] | None = None
        self._ended = asyncio.Event()

    @property
    def log(self) -> RunLog:
        """The run's log, to look at or to write elsewhere."""
        return self.quiet_log.log

    @property
    def held(self) -> int:
        """About how many bytes of memory the run takes, once it has ended."""
        if not self.quiet_log.quiet or self.result is None:
            return self.quiet_log.held
        return self.quiet_log.held + _size_of(self.job, self.result)

    async def wait(self) -> RunResult:
        """How the run ended. Cancelling the waiter leaves the run alone."""
        return self.result or await self.run.wait()

    async def keep(self) -> None:
        """Make the run durable in the ledger, so that a 202 may be answered. Raises StoreUnavailableError.

        Returns at once if the run has ended: then it is for its caller to answer with the result.
        """
        if self.result is None:
            if not self.recording and not self._runs.may_open:
                raise StoreUnavailableError("Too many runs that have ended wait for the job store.")
            await asyncio.shield(self.begin_recording())

    def begin_recording(self) -> asyncio.Future[None]:
        """Open the run in the ledger and write it there as it goes. The future tells how the current try went."""
        if self._recording is None:
            if self._runs.artifacts is not None:
                self.run.keep_outputs()  # a memory-only run that became a 202
            self._opened = asyncio.get_running_loop().create_future()
            self._recording = asyncio.create_task(self._record(), name=f"record-{self.job_id}")
        assert self._opened is not None
        return self._opened

    @property
    def recording(self) -> bool:
        """Whether the run is, or is about to be, open in the ledger."""
        return self._recording is not None

    async def _record(self) -> None:
        runs = self._runs
        while not await self._open():
            # Again, as long as it runs: the store may have done what it could not confirm, and then only a lease of
            # ours keeps it from taking the run for lost.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _OPEN_AGAIN)
                return
            self._opened = asyncio.get_running_loop().create_future()
        if runs.leases is not None:
            runs.leases.add(self.job_id)
        try:
            async with LiveRecorder(
                runs.ledger, self.job_id, 1, runs.definition, log=self.log, attachments=runs.attachments
            ) as recorder:
                result = await self.run.wait()
                await self._ended.wait()
                await runs.keep_artifacts(self, result)
                with contextlib.suppress(StaleAttemptError):  # its lease ran out: the record says worker_lost
                    await recorder.finish(
                        result,
                        runs.latencies_of(result),
                        counters=runs.counters_of(result),
                        canceled_by=self.canceled_by,
                        cancel_reason=self.cancel_reason,
                    )
        finally:
            if runs.leases is not None:
                runs.leases.discard(self.job_id)

    async def _open(self) -> bool:
        opened = self._opened
        assert opened is not None
        try:
            await self._runs.ledger.open(self.job, self._runs.owner)
        except Exception as error:  # whatever it is, who waits for it must learn of it
            if not isinstance(error, StoreUnavailableError):
                _log.exception("job %s could not be opened", self.job_id)
            opened.set_exception(error)
            opened.exception()  # seen: keep() may not be waiting for it
            return False
        opened.set_result(None)
        return True

    async def ended(self) -> bool:
        """After the run: wait until an open record is complete. False: it was never opened."""
        self._ended.set()
        if self._recording is None or self._opened is None:
            return False
        await self._recording
        return self._opened.exception() is None

    def view(self) -> Job:
        """The job as this process knows it."""
        result = self.result
        job = self.job
        canceling = self.run.stopping is JobStatus.CANCELED
        status = result.status if result else JobStatus.CANCELING if canceling else JobStatus.RUNNING
        metadata = self._runs.definition.capture.metadata
        steps = [step_report(record, 1) for record in result.steps[-STEPS_SHOWN:]] if result and metadata else None
        return Job(
            job_id=job.job_id,
            run_id=job.job_id,
            run_name=job.run_name,
            status=status,
            pipeline_name=job.pipeline_name,
            deployment_id=job.deployment_id,
            parameters=from_json(job.shown_parameters or job.parameters) if job.keep_parameters else None,
            labels=dict(job.labels),
            created_at=_utc(self.created_at),
            started_at=_utc(self.created_at),
            completed_at=None if self.completed_at is None else _utc(self.completed_at),
            attempt=1,
            max_attempts=job.max_attempts,
            worker=self._runs.owner,
            execution_time=result.execution_time if result else None,
            progress=self.log.progress(),
            steps=self.log.steps() if steps is None else steps,
            outputs=_values(result.shown_json or result.kept_json) if result else None,
            result=_values(result.kept_json) if result and result.shown_json else None,
            error=result.error if result else None,
            canceled_by=self.canceled_by,
            cancel_reason=self.cancel_reason,
            last_seq=self.log.last_seq,
            links=Links.of(job.job_id),
        )

    def finished_run(self) -> FinishedRun:
        """The whole run for the ledger; after its end."""
        assert self.result is not None
        assert self.completed_at is not None
        result, definition = self.result, self._runs.definition
        brief = self.quiet_log.brief(definition.capture, definition.total_steps)
        bodies: Sequence[bytes] | Brief
        attachments: Sequence[Attachment] = ()
        if brief is None:
            log = self.log
            *bodies, terminal = log.bodies(0)
            progress, attachments = log.progress(), log.attachments
        else:
            bodies, ended, progress = brief
            terminal = encode_body(ended)
        if result.kept is not None and result.kept.lost:
            terminal = encode_body(terminal_event(self.job_id, 1, result))  # it refers to what is not there
        return FinishedRun(
            job=self.job,
            owner=self._runs.owner,
            created_at=self.created_at,
            started_at=self.created_at,
            completed_at=self.completed_at,
            bodies=bodies,
            view=final_view(result, progress, 1, definition.capture),
            outcome=Outcome(
                status=result.status,
                terminal_event=terminal,
                execution_time=result.execution_time,
                outputs=result.kept_json,
                shown_outputs=result.shown_json,
                error=result.error,
                latencies=self._runs.latencies_of(result),
                counters=self._runs.counters_of(result),
                canceled_by=self.canceled_by,
                cancel_reason=self.cancel_reason,
            ),
            attachments=attachments,
        )


class InlineRuns:
    """Starts and knows the synchronous runs of this process. Enter it inside its runtime."""

    def __init__(
        self,
        runtime: RealtimeRuntime,
        ledger: JobLedger,
        definition: PipelineDefinition,
        deployment_id: str,
        owner: str,
        settings: RuntimeSettings,
        leases: Leases | None = None,
        artifacts: ArtifactWriter | None = None,
        attachments: Attachments | None = None,
    ) -> None:
        """``artifacts``: writes what is too large for a record; None: records hold it all.

        ``attachments``: where what opened runs show is kept; None: nowhere.
        """
        self.runtime = runtime
        self.ledger = ledger
        self.definition = definition
        self.owner = owner
        self.leases = leases
        self.artifacts = artifacts
        self.attachments = attachments
        self._deployment_id = deployment_id
        self._settings = settings
        # What bounds it: runs under way by max_concurrency, opened ones by may_open, the rest by the publisher.
        self._runs: dict[str, InlineRun] = {}
        self._budget = EventBudget(settings.event_buffer)
        self._publisher: Publisher[InlineRun] = Publisher(
            self._write,
            released=self._forget,
            breaker=CircuitBreaker(
                settings.breaker_error_threshold, settings.breaker_min_events, settings.breaker_open_seconds
            ),
            size_of=lambda inline: inline.held,
            max_bytes=settings.event_buffer // 2,
            report_interval=settings.error_report_interval,
        )
        self._draining = False
        self._settling: set[asyncio.Task[None]] = set()
        self._keeping: set[asyncio.Task[None]] = set()  # those of them that write artifacts
        self._figures = LocalFigures()
        self._home: Home | None = None

    async def __aenter__(self) -> Self:
        self._home = Home.here()
        await self._publisher.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.interrupt()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled(), 1.0)
        for task in list(self._settling):
            task.cancel()
        if self._keeping:  # they still publish
            await asyncio.wait(list(self._keeping), timeout=0.5)
        await self._publisher.__aexit__(None, None, None)

    def start(
        self,
        parameters: BoundParameters,
        *,
        raw_parameters: bytes,
        run_name: str | None = None,
        timeout: float | None = None,
        labels: Mapping[str, str] | None = None,
        taps: Sequence[str] = (),
        follow: bool = True,
        cache: CacheUse = "use",
    ) -> InlineRun:
        """Start a run; on the loop. Raises OverloadedError at the limit of concurrent runs, DrainingError in shutdown.

        ``follow=False``: nobody will read the run's log while it runs, so a memory-only run need not write one.
        """
        if self._draining:
            raise DrainingError
        if self.runtime.active >= self._settings.max_concurrency:
            raise OverloadedError(
                f"{self._settings.max_concurrency} runs are under way in this process, which is its limit "
                "(ZENML_SERVING_MAX_CONCURRENCY); try again later, or use mode=async"
            )
        definition, capture = self.definition, self.definition.capture
        job_id = new_job_id()
        job = NewJob(
            job_id=job_id,
            deployment_id=self._deployment_id,
            pipeline_name=definition.name,
            run_name=run_name or job_id,
            parameters=raw_parameters,
            labels=dict(labels or {}),
            timeout=timeout,
            total_steps=definition.total_steps,
            max_attempts=1,
            keep_parameters=capture.metadata and not capture.memory_only,
            shown_parameters=self.runtime.shown_parameters(raw_parameters, parameters),
            keep_events=not capture.memory_only,
        )
        quiet_log = QuietLog(partial(self._make_log, job_id))
        request = RunRequest(
            job_id,
            1,
            parameters,
            job.run_name,
            self._settings.request_timeout if timeout is None else timeout,
            tuple(taps),
            cache_read=cache == "use",
            cache_write=cache != "no-store",
            kept=self.artifacts is not None and not capture.memory_only,
        )
        run = self.runtime.start(request, quiet_log if follow or not capture.memory_only else None)
        inline = InlineRun(self, job, quiet_log, run)
        self._runs[job_id] = inline
        timer = None
        if not capture.memory_only:
            timer = asyncio.get_running_loop().call_later(_OPEN_AFTER, self._record, job_id)
        run.when_done(lambda run: self._ended(inline, timer))
        return inline

    def _make_log(self, job_id: str) -> RunLog:
        capture = self.definition.capture
        return RunLog(
            job_id,
            1,
            capture,
            self.definition.total_steps,
            recorded=not capture.memory_only,
            on_full=None if capture.memory_only else lambda: self._record(job_id),
            budget=self._budget,
            home=self._home,
        )

    def find(self, job_id: str) -> InlineRun | None:
        """The run, while it runs and until the store has it."""
        return self._runs.get(job_id)

    def get(self, job_id: str) -> Job | None:
        """The job, while it runs and until the store has it."""
        inline = self._runs.get(job_id)
        return None if inline is None else inline.view()

    def artifact(self, job_id: str, name: str) -> Artifact | None:
        """One of a run's artifacts, until it is written."""
        inline = self._runs.get(job_id)
        kept = None if inline is None or inline.result is None else inline.result.kept
        artifacts = () if kept is None else kept.artifacts
        return next((artifact for artifact in artifacts if artifact.ref.name == name), None)

    async def keep_artifacts(self, inline: InlineRun, result: RunResult) -> None:
        """Write the artifacts of a run that has ended, before it is recorded."""
        kept = result.kept
        if self.artifacts is not None and kept is not None and kept.artifacts:
            await self.artifacts.settle(kept, inline.completed_at or time.time())

    def cancel(self, job_id: str, *, reason: str | None = None, by: str | None = None) -> Cancellation | None:
        """Ask a run of this process to stop. None: it isn't here."""
        inline = self._runs.get(job_id)
        if inline is None:
            return None
        if inline.result is not None:
            return Cancellation(inline.result.status, already_finished=True)
        if inline.run.cancel(reason):
            inline.canceled_by, inline.cancel_reason = by, reason
            data = {"reason": reason, "canceled_by": by}
            inline.log.send(Event(EventType.CANCELLATION_REQUESTED, job_id, 1, message=reason, data=data))
        return Cancellation(JobStatus.CANCELING, already_finished=False)

    async def drain(self, seconds: float) -> None:
        """Start no more runs, and wait up to ``seconds`` for those under way."""
        self._draining = True
        running = [asyncio.ensure_future(inline.run.wait()) for inline in self._runs.values() if not inline.run.done]
        if running and seconds > 0:
            await asyncio.wait(running, timeout=seconds)
        for task in running:
            task.cancel()

    async def interrupt(self, seconds: float = 1.0) -> None:
        """End every run of this process as failed (``draining``), after ``seconds`` also those that don't stop."""
        await self.drain(0)
        running = [inline for inline in self._runs.values() if not inline.run.done]
        for inline in running:
            inline.run.interrupt(
                DrainingError("The process that ran this is shutting down; call again.", retry_after=1)
            )
        if running:
            waits = [asyncio.ensure_future(inline.run.wait()) for inline in running]
            await asyncio.wait(waits, timeout=seconds)
            for inline in running:
                inline.run.abandon()
            await asyncio.wait(waits)

    def figures(self) -> LocalFigures:
        """What the store does not count."""
        return self._figures

    def publisher_figures(self) -> dict[str, Any]:
        """What the background publisher has done, and how its breaker is."""
        return asdict(self._publisher.figures())

    def event_figures(self) -> dict[str, int]:
        """What events take that wait for the store, in bytes, and how many were dropped for want of room."""
        return {"bytes": self._budget.taken, "max_bytes": self._budget.max_bytes, "dropped": self._budget.dropped}

    @property
    def may_open(self) -> bool:
        """Whether one more run may be opened in the ledger: not while many that have ended wait for it."""
        return len(self._settling) < _SETTLING_PER_SLOT * self._settings.max_concurrency

    def latencies_of(self, result: RunResult) -> dict[str, list[float]]:
        """The latencies to observe for a result; none when metrics are not captured."""
        if not self.definition.capture.metrics:
            return {}
        return {
            "sync": [result.execution_time],
            "step": [record.duration for record in result.steps if record.duration is not None],
        }

    def counters_of(self, result: RunResult) -> dict[str, float]:
        """What a result adds to the deployment's totals; nothing when metrics are not captured."""
        return receipts.counters(result.steps) if self.definition.capture.metrics else {}

    def _ended(self, inline: InlineRun, timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
        result = inline.run.result
        assert result is not None
        inline.completed_at = time.time()
        inline.result = result
        inline.quiet_log.close(terminal_event(inline.job_id, 1, result))
        if inline.quiet_log.quiet:
            inline.charged = inline.held
            self._budget.take(inline.charged, always=True)
        else:
            inline.log.hold(_size_of(inline.job, result))
        if inline.recording:
            task = asyncio.create_task(self._settle(inline, result))
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)
        else:
            self._hand_over(inline, result)

    async def _settle(self, inline: InlineRun, result: RunResult) -> None:
        try:
            recorded = await inline.ended()
        except Exception:  # the store refused the record: the run is over all the same
            _log.exception("job %s could not be recorded", inline.job_id)
            self._forget(inline)
            return
        if recorded:
            self._forget(inline)
        else:  # the store was away when the run was to be opened
            self._hand_over(inline, result)

    def _record(self, job_id: str) -> None:
        inline = self._runs.get(job_id)
        if inline is not None and inline.result is None and self.may_open:
            inline.begin_recording()

    def _hand_over(self, inline: InlineRun, result: RunResult) -> None:
        if self.definition.capture.memory_only:
            self._count(result)
            self._forget(inline)
        elif result.kept is not None and result.kept.artifacts:
            task = asyncio.create_task(self._keep(inline, result), name=f"artifacts-{inline.job_id}")
            for tasks in (self._settling, self._keeping):
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        else:
            self._publisher.publish(inline)

    async def _keep(self, inline: InlineRun, result: RunResult) -> None:
        try:
            await self.keep_artifacts(inline, result)
        finally:
            self._publisher.publish(inline)

    async def _settled(self) -> None:
        await asyncio.gather(*(inline.run.wait() for inline in self._runs.values()))
        await asyncio.sleep(0)  # the callbacks of those ends: they are queued, or begin to settle
        while self._settling:
            await asyncio.wait(list(self._settling))

    def _forget(self, inline: InlineRun) -> None:
        self._runs.pop(inline.job_id, None)
        inline.quiet_log.release()
        if inline.charged:
            self._budget.give_back(inline.charged)
            inline.charged = 0

    def _count(self, result: RunResult) -> None:
        old = self._figures
        completed = result.status is JobStatus.COMPLETED
        canceled = result.status is JobStatus.CANCELED
        self._figures = LocalFigures(
            completed=old.completed + completed,
            failed=old.failed + (not completed and not canceled),
            canceled=old.canceled + canceled,
            execution_seconds=old.execution_seconds + (result.execution_time if completed else 0.0),
            last_execution=time.time(),
            counters=_added(old.counters, self.counters_of(result)),
        )

    async def _write(self, runs: Sequence[InlineRun]) -> None:
        finished: list[FinishedRun] = []
        for inline in runs:
            finished.append(inline.finished_run())
            if len(finished) % _AT_A_STRETCH == 0:
                await asyncio.sleep(0)
        await self.ledger.record(finished)


def _size_of(job: NewJob, result: RunResult) -> int:
    """About how many bytes of memory a finished run takes besides its log."""
    values = len(job.parameters) + len(result.outputs_json or b"") + len(result.taps_json)
    if result.kept is not None:  # its artifacts are counted by their writer
        values += len(result.kept.json) + len(result.kept.shown or b"")
    return _RUN_BYTES + values + _STEP_BYTES * len(result.steps)


def _added(totals: Mapping[str, float], more: Mapping[str, float]) -> Mapping[str, float]:
    return {**totals, **{name: totals.get(name, 0.0) + value for name, value in more.items()}} if more else totals


def _values(outputs: bytes | None) -> dict[str, Any] | None:
    return None if outputs is None else from_json(outputs)


def _utc(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)
