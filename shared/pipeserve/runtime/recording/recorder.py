"""Writes one run's events and its end to a job ledger, while it runs.

Events go in batches, in the background: a slow store never holds up a step. What waits for a store that is away is
bounded by the process's :class:`~pipeserve.runtime.recording.event_budget.EventBudget`. The end is the ledger's
business and is written in the foreground, again and again until the store has it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Self

from pipeserve.errors import JobCanceledError, StaleAttemptError, StoreUnavailableError
from pipeserve.events import Event, encode_body
from pipeserve.jobs import JobStatus
from pipeserve.runtime.backoff import Backoff
from pipeserve.runtime.insist import insist
from pipeserve.runtime.ports import Attachment, Attachments, JobLedger, Outcome, RunView
from pipeserve.runtime.recording.event_budget import EventBudget
from pipeserve.runtime.recording.run_log import RunLog
from pipeserve.runtime.recording.run_view import final_view, terminal_event
from pipeserve.runtime.run import RunResult
from pipeserve.sdk.definition import PipelineDefinition

_LINGER = 0.005  # seconds to wait for more events before a batch is written
_BATCH = 500  # events in one write: one script holds up the store for all
_BATCH_BYTES = 1_048_576  # likewise, of more than one event; a write must also end within the store's timeout
_FIRST_BACKOFF = 0.05
_LAST_BACKOFF = 1.0


class LiveRecorder:
    """An :class:`~pipeserve.runtime.run.EventSink` for an attempt that this process owns in ``ledger``."""

    def __init__(
        self,
        ledger: JobLedger,
        job_id: str,
        attempt: int,
        definition: PipelineDefinition,
        *,
        log: RunLog | None = None,
        budget: EventBudget | None = None,
        attachments: Attachments | None = None,
    ) -> None:
        """``log``: one that was begun elsewhere; ``budget`` is for a log of its own, which it makes without.

        ``attachments``: where what the run shows is kept; None: nowhere.
        """
        self.job_id = job_id
        self.attempt = attempt
        self.lost = asyncio.Event()
        """Set when a write was refused because another attempt owns the job: the run should stop."""
        self._ledger = ledger
        self._capture = definition.capture
        self._forget = log is None  # a log of our own has no other reader
        self.log = log or RunLog(
            job_id, attempt, definition.capture, definition.total_steps, recorded=True, budget=budget
        )
        self._attachments = attachments
        self._attached = 0
        self._written = 0
        self._shown = -1  # the log's count of changes to its view, as of the newest view in the store
        self._wake: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()

    async def __aenter__(self) -> Self:
        if not self._capture.memory_only:
            self._wake = self.log.subscribe()
            self._wake.set()  # a log that was handed over may have entries
            self._task = asyncio.create_task(self._write_events(self._wake), name=f"recorder-{self.job_id}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()
        if self._forget:
            self.log.release()

    def send(self, event: Event) -> None:
        """Take one event, from any thread."""
        if not self._capture.memory_only:
            self.log.send(event)

    def attach(self, attachment: Attachment) -> None:
        """Take what the run shows, from any thread."""
        if not self._capture.memory_only:
            self.log.attach(attachment)

    async def finish(
        self,
        result: RunResult,
        latencies: Mapping[str, Sequence[float]] | None = None,
        *,
        counters: Mapping[str, float] | None = None,
        canceled_by: str | None = None,
        cancel_reason: str | None = None,
    ) -> JobStatus:
        """Write the last events, the result and the terminal event together; returns the status as recorded.

        A cancel that was accepted meanwhile wins: the job then is ``canceled``. Raises StaleAttemptError, and writes
        nothing, if another attempt owns the job. While the store is away it tries again, until cancelled.
        """
        await self._stop()
        if self.lost.is_set():
            raise StaleAttemptError(f"job {self.job_id}: attempt {self.attempt} no longer owns it")
        while True:
            terminal = terminal_event(self.job_id, self.attempt, result)
            self.log.close(terminal)
            bodies = [] if self._capture.memory_only else await self._last_bodies()
            outcome = Outcome(
                status=result.status,
                terminal_event=encode_body(terminal),
                execution_time=result.execution_time,
                outputs=result.kept_json,
                shown_outputs=result.shown_json,
                error=result.error,
                latencies=dict(latencies or {}),
                counters=dict(counters or {}),
                canceled_by=canceled_by,
                cancel_reason=cancel_reason,
            )
            view = final_view(result, self.log.progress(), self.attempt, self._capture)
            if await insist(partial(self._ledger.finish, self.job_id, self.attempt, bodies, view, outcome)):
                return result.status
            error = JobCanceledError(await self._cancel_words()).problem(job_id=self.job_id)
            result = replace(result, status=JobStatus.CANCELED, outputs_json=None, kept=None, error=error)

    async def _cancel_words(self) -> str | None:
        with contextlib.suppress(StoreUnavailableError):
            job = await self._ledger.get(self.job_id)
            if job is not None and job.cancel_reason:
                return f"The job was canceled: {job.cancel_reason}"
        return None

    async def _last_bodies(self) -> list[bytes]:
        """What of the closed log is to be written with its end: at most a batch, without the terminal event."""
        await insist(partial(self._write_attachments, ending=True))
        while True:
            bodies = self.log.bodies(self._written, _BATCH + 1)
            rest = _batch_of(bodies[:-1])
            if len(rest) == len(bodies) - 1 < _BATCH:
                return rest
            await insist(partial(self._ledger.append, self.job_id, self.attempt, rest, RunView(), ending=True))
            self._have_written(len(rest))

    async def _write_attachments(self, *, ending: bool = False) -> None:
        if self._attachments is not None:
            for attachment in self.log.attachments[self._attached :]:  # one by one: each may be large
                await self._attachments.add(self.job_id, self.attempt, [attachment], ending=ending)
                self._attached += 1

    def _have_written(self, count: int) -> None:
        self._written += count
        self.log.written(self._written, forget=self._forget)

    async def _write_events(self, wake: asyncio.Event) -> None:
        backoff = Backoff(_FIRST_BACKOFF, _LAST_BACKOFF)
        behind = False
        while not self._ending.is_set():
            await wake.wait()
            if not self._ending.is_set() and not behind:
                await asyncio.sleep(_LINGER)
            wake.clear()
            waiting = self.log.bodies(self._written, _BATCH)
            if not waiting or self.log.closed:
                continue
            bodies = _batch_of(waiting)
            behind = len(bodies) == _BATCH or len(bodies) < len(waiting)
            try:
                await self._write_attachments()  # before the events that tell of them
                await self._append(bodies)
            except StoreUnavailableError:
                wake.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), backoff.next())
            except StaleAttemptError:
                self.lost.set()
                return
            else:
                backoff.reset()
                self._have_written(len(bodies))
                if behind:
                    wake.set()

    async def _append(self, bodies: Sequence[bytes]) -> None:
        changes = self.log.view_changes
        view = RunView() if changes == self._shown else self.log.view()
        await self._ledger.append(self.job_id, self.attempt, bodies, view)
        self._shown = changes

    async def _stop(self) -> None:
        # Not cancelled: a write under way must come to its end, or nobody knows whether it happened.
        self._ending.set()
        if self._wake is not None:
            self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None
        if self._wake is not None:
            self.log.unsubscribe(self._wake)
            self._wake = None


def _batch_of(bodies: list[bytes]) -> list[bytes]:
    """As many of the first as go into one write; at least one."""
    size = 0
    for count, body in enumerate(bodies):
        size += len(body)
        if count == _BATCH or (size > _BATCH_BYTES and count):
            return bodies[:count]
    return bodies
