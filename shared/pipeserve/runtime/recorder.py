"""Writes one run's events and its end to a job ledger, while it runs.

Events go in batches, in the background: a slow store never holds up a step. The end is the ledger's business and is
written in the foreground, again and again until the store has it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Self, TypeVar

from pipeserve.errors import JobCanceledError, StaleAttemptError, StoreUnavailableError
from pipeserve.events import Event, encode_body
from pipeserve.jobs import JobStatus
from pipeserve.runtime.backoff import Backoff
from pipeserve.runtime.ports import JobLedger, Outcome, RunView
from pipeserve.runtime.run import RunResult
from pipeserve.runtime.run_log import RunLog, final_view, terminal_event
from pipeserve.sdk.definition import PipelineDefinition

T = TypeVar("T")

_LINGER = 0.005  # seconds to wait for more events before a batch is written
_BATCH = 500  # events in one write: one script holds up the store for all
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
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.lost = asyncio.Event()
        """Set when a write was refused because another attempt owns the job: the run should stop."""
        self._ledger = ledger
        self._capture = definition.capture
        self._forget = log is None  # a log of our own has no other reader
        self.log = log or RunLog(job_id, attempt, definition.capture, definition.total_steps, recorded=True)
        self._written = 0
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

    def send(self, event: Event) -> None:
        """Take one event, from any thread."""
        if not self._capture.memory_only:
            self.log.send(event)

    async def finish(
        self,
        result: RunResult,
        latencies: Mapping[str, Sequence[float]] | None = None,
        *,
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
                outputs=result.outputs_json,
                error=result.error,
                latencies=dict(latencies or {}),
                canceled_by=canceled_by,
                cancel_reason=cancel_reason,
            )
            view = final_view(result, self.log, self._capture)
            if await _insist(partial(self._ledger.finish, self.job_id, self.attempt, bodies, view, outcome)):
                return result.status
            error = JobCanceledError(await self._cancel_words()).problem(job_id=self.job_id)
            result = replace(result, status=JobStatus.CANCELED, outputs_json=None, error=error)

    async def _cancel_words(self) -> str | None:
        with contextlib.suppress(StoreUnavailableError):
            job = await self._ledger.get(self.job_id)
            if job is not None and job.cancel_reason:
                return f"The job was canceled: {job.cancel_reason}"
        return None

    async def _last_bodies(self) -> list[bytes]:
        """What of the closed log is to be written with its end: at most a batch, without the terminal event."""
        while len(bodies := self.log.bodies(self._written, _BATCH + 1)) > _BATCH:
            batch = bodies[:_BATCH]
            await _insist(partial(self._ledger.append, self.job_id, self.attempt, batch, RunView()))
            self._have_written(len(batch))
        return bodies[:-1]

    def _have_written(self, count: int) -> None:
        self._written += count
        self.log.written(self._written, forget=self._forget)

    async def _write_events(self, wake: asyncio.Event) -> None:
        backoff = Backoff(_FIRST_BACKOFF, _LAST_BACKOFF)
        while not self._ending.is_set():
            await wake.wait()
            if not self._ending.is_set():
                await asyncio.sleep(_LINGER)
            wake.clear()
            bodies = self.log.bodies(self._written, _BATCH)
            if not bodies or self.log.closed:
                continue
            try:
                await self._ledger.append(self.job_id, self.attempt, bodies, self.log.view())
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
                if len(bodies) == _BATCH:
                    wake.set()  # there may be more

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


async def _insist(write: Callable[[], Awaitable[T]]) -> T:
    """Write until the store has it; only a cancel ends that earlier."""
    backoff = Backoff(_FIRST_BACKOFF, _LAST_BACKOFF)
    while True:
        try:
            return await write()
        except StoreUnavailableError:
            await asyncio.sleep(backoff.next())
