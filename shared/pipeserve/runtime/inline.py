"""The synchronous runs of one API process: executed here, known here first, told to the store in the background.

A run that ends quickly is recorded whole, after its answer. One that lasts is *opened* in the ledger, under a lease, so
that ``/jobs`` and ``/stream`` of every replica show it while it runs; so is one whose caller is answered with a 202. A
memory-only run is told to nobody, unless it became a 202.

A run of which more is promised (its caller may come back for it with an idempotency key, or a webhook waits for its
end) is opened before it starts, or not started at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Self, TypedDict, Unpack

from pipeserve.errors import DrainingError, StoreUnavailableError
from pipeserve.events import Event, EventType
from pipeserve.jobs import Job, JobStatus, new_job_id
from pipeserve.runtime.breaker import CircuitBreaker
from pipeserve.runtime.cache import receipts
from pipeserve.runtime.executor import Run
from pipeserve.runtime.inline_run import InlineRun, size_of
from pipeserve.runtime.ports import (
    Admission,
    Attachments,
    CacheUse,
    Cancellation,
    FinishedRun,
    IdempotencyKey,
    JobLedger,
    Leases,
    NewJob,
    Webhook,
)
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.runtime.recording.event_budget import EventBudget
from pipeserve.runtime.recording.publisher import Publisher
from pipeserve.runtime.recording.quiet_log import QuietLog
from pipeserve.runtime.recording.run_log import Home, RunLog
from pipeserve.runtime.recording.run_view import terminal_event
from pipeserve.runtime.run import RunRequest, RunResult
from pipeserve.runtime.run_times import RunTimes
from pipeserve.runtime.slots import Slots
from pipeserve.runtime.step_spans import end_run_span, run_attributes
from pipeserve.runtime.tracing import Span
from pipeserve.runtime.values.artifact_ref import Artifact
from pipeserve.runtime.values.artifact_writer import ArtifactWriter
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.schema import BoundParameters
from pipeserve.settings import RuntimeSettings

_log = logging.getLogger(__name__)
_AT_A_STRETCH = 8  # runs that are made ready to be recorded before those who call get a turn
_OPEN_AFTER = 0.25  # seconds: a run that lasts longer is worth a record of its own while it runs
_SETTLING_PER_SLOT = 16  # opened runs that have ended and wait for the store; beyond, none is opened
_MOST_IN_DOUBT = 1_000  # keyed runs whose opening the store did not confirm
_Place = tuple[str | None, str]  # an idempotency key and the fingerprint of a request


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


class RunOptions(TypedDict, total=False):
    """What a call may say of its run. Times are in seconds."""

    run_name: str | None
    timeout: float | None
    labels: Mapping[str, str]
    taps: Sequence[str]
    cache: CacheUse
    caller: str
    """Whose run it is."""
    priority: int
    """For the record: nothing waits here."""


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
        self._times = RunTimes(definition)
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
        self._slots = Slots(settings.max_concurrency)
        # Runs that may be asked for again meanwhile, by idempotency key and fingerprint, until the store has them.
        self._openings: dict[_Place, asyncio.Task[tuple[Admission, InlineRun | None]]] = {}
        self._in_doubt: dict[_Place, NewJob] = {}
        self._settling: set[asyncio.Task[None]] = set()
        self._keeping: set[asyncio.Task[None]] = set()  # those of them that write artifacts
        self._figures = LocalFigures()
        self._home: Home | None = None

    async def __aenter__(self) -> Self:
        self._home = Home.here()
        await self._publisher.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        openings = list(self._openings.values())
        for opening in openings:
            opening.cancel()
        await asyncio.gather(*openings, return_exceptions=True)
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
        follow: bool = True,
        **options: Unpack[RunOptions],
    ) -> InlineRun:
        """Start a run; on the loop. Raises OverloadedError at the limit of concurrent runs, DrainingError in shutdown.

        ``follow=False``: nobody will read the run's log while it runs, so a memory-only run need not write one.
        """
        self._check_draining()
        self._slots.check(self.runtime.active)
        return self._begin(self._new_job(parameters, raw_parameters, options), parameters, options, follow=follow)

    async def open(
        self,
        parameters: BoundParameters,
        *,
        raw_parameters: bytes,
        idempotency: IdempotencyKey | None = None,
        webhook: Webhook | None = None,
        **options: Unpack[RunOptions],
    ) -> tuple[Admission, InlineRun | None]:
        """Open a run in the ledger and start it, unless there is a job under its key already.

        The run, if it is one of this process. However many ask at once with one key, one run is started, and it takes
        one slot. Cancelling the waiter leaves the run alone. Raises OverloadedError, DrainingError,
        IdempotencyMismatchError, StoreUnavailableError: then nothing was started.
        """
        place = None if idempotency is None else (idempotency.key, idempotency.fingerprint)
        if place in self._openings:
            admission, inline = await asyncio.shield(self._openings[place])
            return replace(admission, replayed=True), inline
        if place is None:
            job = self._new_job(parameters, raw_parameters, options, idempotency, webhook)
            return await self._open(job, parameters, options)
        # One whose opening was not confirmed may be open all the same: it is that job, then, and not a replay of it.
        job = self._in_doubt.pop(place, None) or self._new_job(
            parameters, raw_parameters, options, idempotency, webhook
        )
        opening = asyncio.create_task(self._open(job, parameters, options), name=f"open-{job.job_id}")
        self._openings[place] = opening
        opening.add_done_callback(partial(self._opened, place, job))
        return await asyncio.shield(opening)

    async def _open(
        self, job: NewJob, parameters: BoundParameters, options: RunOptions
    ) -> tuple[Admission, InlineRun | None]:
        self._check_draining()
        with self._slots.hold(self.runtime.active):
            self.check_may_open()
            admission = await self.ledger.open(job, self.owner)
        if admission.replayed:
            return admission, self.find(admission.job_id)
        inline = self._begin(job, parameters, options, follow=True, opened=True)
        inline.begin_recording(opened=True)
        return admission, inline

    def _opened(self, place: _Place, job: NewJob, opening: asyncio.Task[tuple[Admission, InlineRun | None]]) -> None:
        if not opening.cancelled() and isinstance(opening.exception(), StoreUnavailableError):
            while len(self._in_doubt) >= _MOST_IN_DOUBT:
                del self._in_doubt[next(iter(self._in_doubt))]
            self._in_doubt[place] = job
        if opening.cancelled() or opening.exception() is not None or opening.result()[0].replayed:
            del self._openings[place]

    def _new_job(
        self,
        parameters: BoundParameters,
        raw_parameters: bytes,
        options: RunOptions,
        idempotency: IdempotencyKey | None = None,
        webhook: Webhook | None = None,
    ) -> NewJob:
        definition, capture = self.definition, self.definition.capture
        job_id = new_job_id()
        return NewJob(
            job_id=job_id,
            deployment_id=self._deployment_id,
            pipeline_name=definition.name,
            run_name=options.get("run_name") or job_id,
            parameters=raw_parameters,
            labels=dict(options.get("labels", {})),
            timeout=options.get("timeout"),
            total_steps=definition.total_steps,
            max_attempts=1,
            keep_parameters=capture.metadata and not capture.memory_only,
            shown_parameters=self.runtime.shown_parameters(raw_parameters, parameters),
            keep_events=not capture.memory_only,
            cache=options.get("cache", "use"),
            caller=options.get("caller", ""),
            priority=options.get("priority", 0),
            idempotency=idempotency,
            webhook=webhook,
        )

    def _begin(
        self, job: NewJob, parameters: BoundParameters, options: RunOptions, *, follow: bool, opened: bool = False
    ) -> InlineRun:
        capture = self.definition.capture
        quiet_log = QuietLog(partial(self._make_log, job.job_id))
        request = RunRequest(
            job.job_id,
            1,
            parameters,
            job.run_name,
            self._settings.request_timeout if job.timeout is None else job.timeout,
            tuple(options.get("taps", ())),
            cache_read=job.cache == "use",
            cache_write=job.cache != "no-store",
            kept=self.artifacts is not None and not capture.memory_only,
        )
        tracing, span = self.runtime.tracing, None
        if tracing is not None:
            attributes = run_attributes(job.job_id, 1, job.pipeline_name, job.deployment_id)
            span = tracing.start(f"run {job.pipeline_name}", "internal", attributes)
        try:
            run = self.runtime.start(request, quiet_log if follow or not capture.memory_only else None)
        finally:
            if span is not None:  # the run has it in its own context
                span.leave()
        if span is not None:
            run.when_done(partial(_end_span, span))
        inline = InlineRun(self, job, quiet_log, run)
        self._runs[job.job_id] = inline
        timer = None
        if not (opened or capture.memory_only):
            timer = asyncio.get_running_loop().call_later(_OPEN_AFTER, self._record, job.job_id)
        run.when_done(lambda run: self._ended(inline, timer))
        return inline

    def _check_draining(self) -> None:
        if self._draining:
            raise DrainingError

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

    def check_may_open(self) -> None:
        """Raise StoreUnavailableError unless :attr:`may_open`."""
        if not self.may_open:
            raise StoreUnavailableError("Too many runs that have ended wait for the job store.")

    def latencies_of(self, result: RunResult) -> dict[str, list[float]]:
        """The latencies to observe for a result; none when metrics are not captured."""
        if not self.definition.capture.metrics:
            return {}
        return {"sync": [result.execution_time], **self._times.of(result)}

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
        self._slots.ended(result.execution_time)
        inline.quiet_log.close(terminal_event(inline.job_id, 1, result))
        if inline.quiet_log.quiet:
            inline.charged = inline.held
            self._budget.take(inline.charged, always=True)
        else:
            inline.log.hold(size_of(inline.job, result))
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
        idempotency = inline.job.idempotency
        if idempotency is not None:
            self._openings.pop((idempotency.key, idempotency.fingerprint), None)
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


def _added(totals: Mapping[str, float], more: Mapping[str, float]) -> Mapping[str, float]:
    return {**totals, **{name: totals.get(name, 0.0) + value for name, value in more.items()}} if more else totals


def _end_span(span: Span, run: Run) -> None:
    if run.result is not None:
        end_run_span(span, run.result)
