"""One synchronous run of an API process, and how it gets into the job ledger."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from pipeserve.errors import StaleAttemptError, StoreUnavailableError
from pipeserve.events import encode_body
from pipeserve.jobs import Job, JobStatus, Links, WebhookReport
from pipeserve.runtime.executor import Run
from pipeserve.runtime.ports import Attachment, FinishedRun, NewJob, Outcome
from pipeserve.runtime.recording.brief import Brief
from pipeserve.runtime.recording.quiet_log import QuietLog
from pipeserve.runtime.recording.recorder import LiveRecorder
from pipeserve.runtime.recording.run_log import RunLog
from pipeserve.runtime.recording.run_view import STEPS_SHOWN, final_view, step_report, terminal_event
from pipeserve.runtime.run import RunResult

if TYPE_CHECKING:
    from pipeserve.runtime.inline import InlineRuns

_log = logging.getLogger(__name__)
_OPEN_AGAIN = 1.0  # seconds after a try that failed
_RUN_BYTES = 10_000  # of a run without its values, steps and log, and of a step's record; measured
_STEP_BYTES = 300


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
        return self.quiet_log.held + size_of(self.job, self.result)

    async def wait(self) -> RunResult:
        """How the run ended. Cancelling the waiter leaves the run alone."""
        return self.result or await self.run.wait()

    async def keep(self) -> None:
        """Make the run durable in the ledger, so that a 202 may be answered. Raises StoreUnavailableError.

        Returns at once if the run has ended: then it is for its caller to answer with the result.
        """
        if self.result is None:
            if not self.recording:
                self._runs.check_may_open()
            await asyncio.shield(self.begin_recording())

    def begin_recording(self, *, opened: bool = False) -> asyncio.Future[None]:
        """Open the run in the ledger and write it there as it goes. The future tells how the current try went.

        ``opened``: it is open there already.
        """
        if self._recording is None:
            if self._runs.artifacts is not None:
                self.run.keep_outputs()  # a memory-only run that is kept after all
            self._opened = asyncio.get_running_loop().create_future()
            if opened:
                self._opened.set_result(None)
            self._recording = asyncio.create_task(self._record(opened), name=f"record-{self.job_id}")
        assert self._opened is not None
        return self._opened

    @property
    def recording(self) -> bool:
        """Whether the run is, or is about to be, open in the ledger."""
        return self._recording is not None

    async def _record(self, opened: bool) -> None:
        runs = self._runs
        while not (opened or await self._open()):
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
            caller=job.caller or None,
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
            priority=job.priority,
            outputs=_values(result.shown_json or result.kept_json) if result else None,
            result=_values(result.kept_json) if result and result.shown_json else None,
            error=result.error if result else None,
            canceled_by=self.canceled_by,
            cancel_reason=self.cancel_reason,
            webhook=None
            if job.webhook is None
            else WebhookReport(url=job.webhook.url, events=list(job.webhook.events)),
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


def size_of(job: NewJob, result: RunResult) -> int:
    """About how many bytes of memory a finished run takes besides its log."""
    values = len(job.parameters) + len(result.outputs_json or b"") + len(result.taps_json)
    if result.kept is not None:  # its artifacts are counted by their writer
        values += len(result.kept.json) + len(result.kept.shown or b"")
    return _RUN_BYTES + values + _STEP_BYTES * len(result.steps)


def _values(outputs: bytes | None) -> dict[str, Any] | None:
    return None if outputs is None else from_json(outputs)


def _utc(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)
