"""The record of every job in this process, and the queue of those that wait."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeserve.errors import (
    BadRequestError,
    IdempotencyMismatchError,
    NotRetryableError,
    ProblemError,
    QueueFullError,
)
from pipeserve.events import EventType
from pipeserve.jobs import Job, JobPage, JobStatus
from pipeserve.runtime.memory.record import Record
from pipeserve.runtime.memory.state import MemoryState
from pipeserve.runtime.memory.view import job_of
from pipeserve.runtime.ports import (
    Admission,
    Cancellation,
    Claim,
    FinishedRun,
    JobQuery,
    NewJob,
    Outcome,
    Reconciliation,
    Renewal,
    RunView,
)
from pipeserve.runtime.recording.brief import Brief

RECONCILE_SECONDS = 30.0
"""Seconds for which one look at all live jobs is enough."""
_NOT_AGAIN: dict[str, Any] = dict.fromkeys(("idempotency", "run_at", "expires_in", "retried_from", "trace"))
"""What of a job's submission is not for its repetition."""


class MemoryLedger:
    """A ``JobLedger`` in this process. Nothing here waits, so each call is one step for everybody else.

    It lists no worker processes, so a claim takes all that it asks for, however few jobs wait.
    """

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def submit(self, job: NewJob) -> Admission:
        """Accept ``job``. Raises QueueFullError, IdempotencyMismatchError."""
        state = self._state
        known = self._known(job)
        if known is not None:
            return known
        now, cap = state.clock(), state.max_queue_size
        if len(state.queue) >= cap:
            seconds = state.pace.retry_after(now, cap)
            state.pace.refused(now)
            raise QueueFullError(
                f"The queue is full: {cap} jobs wait. Try again in {seconds:g} s.", retry_after=seconds
            )
        record = state.create(job, JobStatus.PENDING, now, sync=False)
        self._remember(job)
        state.queue.add(record, now)
        position = state.queue.position(record)
        if job.keep_events:
            state.add(record, [state.event(record, EventType.JOB_QUEUED, {"queue_position": position})])
        return Admission(job.job_id, queue_position=position)

    async def submit_many(self, jobs: Sequence[NewJob]) -> list[Admission | ProblemError]:
        """As ``submit``; each is judged for itself."""
        admissions: list[Admission | ProblemError] = []
        for job in jobs:
            try:
                admissions.append(await self.submit(job))
            except ProblemError as refusal:
                admissions.append(refusal)
        return admissions

    async def open(self, job: NewJob, owner: str) -> Admission:
        """Record a synchronous run of this process as attempt 1, under a lease of ``owner``.

        Raises IdempotencyMismatchError.
        """
        known = self._known(job)
        if known is not None:
            return known
        record = self._state.create(job, JobStatus.RUNNING, self._state.clock(), sync=True)
        self._remember(job)
        self._hand_over(record, owner)
        return Admission(job.job_id)

    async def record(self, runs: Sequence[FinishedRun]) -> None:
        """Record synchronous runs that have ended, also one that this owner has open."""
        for run in runs:
            record = self._state.get(run.job.job_id)
            if record is None:
                record = self._state.create(run.job, JobStatus.RUNNING, run.created_at, sync=True)
            elif not (record.sync and record.held and record.owner == run.owner):
                continue
            record.created_at = run.created_at
            record.attempt, record.started_at, record.worker = 1, run.started_at, run.owner
            bodies = run.bodies.bodies() if isinstance(run.bodies, Brief) else run.bodies
            bodies = bodies[record.last_seq :]  # only its owner numbers a synchronous run's events
            if run.job.keep_events:
                record.attachments |= {attachment.index: attachment for attachment in run.attachments}
            self._end(record, bodies, run.view, run.outcome, run.completed_at)

    async def get(self, job_id: str) -> Job | None:
        """The job as it is now."""
        record = self._state.get(job_id)
        return None if record is None else self._view(record, deliveries=True)

    async def input_of(self, job_id: str) -> NewJob | None:
        """What the job was submitted as, to submit it again. None: there is no such job. Raises NotRetryableError."""
        record = self._state.get(job_id)
        if record is None:
            return None
        if not record.status.terminal:
            raise NotRetryableError("The job has not ended yet.", job_id=job_id)
        if record.parameters is None:
            raise NotRetryableError("The job's parameters were not kept.", job_id=job_id)
        return replace(record.new, parameters=record.parameters, **_NOT_AGAIN)

    async def find(self, query: JobQuery) -> JobPage:
        """A page of jobs, newest first. Raises BadRequestError for a cursor that this ledger did not make."""
        wanted = dict(query.labels).items()
        found = [
            record
            for record in self._state.all()
            if query.status in (None, record.status)
            and query.caller in (None, record.new.caller)
            and query.code in (None, record.error and record.error.code)
            and wanted <= dict(record.new.labels).items()
        ]
        found.sort(key=lambda record: record.order, reverse=True)
        after = None if query.cursor is None else _position(query.cursor)
        rest = [record for record in found if after is None or record.order < after]
        page = rest[: query.limit]
        more = len(rest) > query.limit and bool(page)
        return JobPage(
            jobs=[self._view(record, deliveries=False) for record in page],
            total=len(found),
            next_cursor=f"{page[-1].created_at!r}:{page[-1].job_id}" if more else None,
        )

    async def cancel(self, job_id: str, *, reason: str | None = None, by: str | None = None) -> Cancellation | None:
        """End a pending job at once, or ask the owner of a running one to stop. None: there is no such job."""
        state = self._state
        record = state.get(job_id)
        if record is None:
            return None
        if record.status.terminal:
            return Cancellation(record.status, already_finished=True)
        if record.status is not JobStatus.CANCELING:
            record.canceled_by, record.cancel_reason = by, reason
            data = {"reason": reason, "canceled_by": by}
            if record.new.keep_events and not record.sync:
                state.add(record, [state.event(record, EventType.CANCELLATION_REQUESTED, data, message=reason)])
            if record.status is JobStatus.PENDING:
                state.end_canceled(record, data)
                return Cancellation(record.status, already_finished=False)
            record.status = JobStatus.CANCELING
        for listener in state.listeners:
            listener.put_nowait(job_id)
        return Cancellation(record.status, already_finished=False)

    async def claim(self, owner: str, limit: int) -> list[Claim]:
        """Take up to ``limit`` due jobs, lane by lane, after taking back those whose lease ran out."""
        claims, _ = await self.claim_batch(owner, limit)
        return claims

    async def claim_batch(self, owner: str, limit: int) -> tuple[list[Claim], float | None]:
        """As ``claim``, and the Unix time in ms at which the next queued job is due, if any."""
        state, now = self._state, self._state.clock()
        state.catch_up()
        claims: list[Claim] = []
        while len(claims) < limit and (record := state.queue.take()) is not None:
            record.status = JobStatus.RUNNING
            record.progress = record.steps = None
            self._hand_over(record, owner)
            claims.append(_claim(record, now))
        state.pace.claimed(now, len(claims))
        next_due = state.queue.first_due()
        return claims, None if next_due is None else next_due * 1000

    async def renew(self, owner: str, job_ids: Sequence[str]) -> Renewal:
        """Extend the leases of these jobs by a whole lease from now; says which are lost and which to cancel.

        Then jobs of others whose lease ran out are taken back, and those that have waited too long expire.
        """
        lost: list[str] = []
        canceling: list[str] = []
        for job_id in job_ids:
            record = self._state.get(job_id)
            if record is None or not record.held or record.owner != owner:
                lost.append(job_id)
                continue
            record.lease_end = self._state.clock() + self._state.lease_seconds
            if record.status is JobStatus.CANCELING:
                canceling.append(job_id)
        self._state.catch_up()
        return Renewal(tuple(lost), tuple(canceling))

    async def append(
        self, job_id: str, attempt: int, bodies: Sequence[bytes], view: RunView, *, ending: bool = False
    ) -> int:
        """Add events to the job's log and update its view. Returns the last number. Raises StaleAttemptError."""
        record = self._state.owned(job_id, attempt)
        self._write(record, bodies, view)
        return record.last_seq

    async def finish(self, job_id: str, attempt: int, bodies: Sequence[bytes], view: RunView, outcome: Outcome) -> bool:
        """Write the last events, state, result and terminal event together. Raises StaleAttemptError.

        False: nothing was written, because a cancel was accepted meanwhile and ``outcome`` is not ``canceled``.
        """
        known = self._state.get(job_id)
        if known is not None and known.status is outcome.status and known.ended_by_attempt(attempt):
            return True  # a repetition
        record = self._state.owned(job_id, attempt)
        if record.status is JobStatus.CANCELING and outcome.status is not JobStatus.CANCELED:
            return False
        self._end(record, bodies, view, outcome, None)
        return True

    async def release(self, owner: str, *, lost: bool) -> int:
        """Give back all that ``owner`` holds; returns how many. ``lost`` counts against their attempts."""
        held = [record for record in self._state.all() if record.held and record.owner == owner]
        for record in held:
            self._state.take_back(record, "worker_died" if lost else "drained", counts=lost)
        return len(held)

    async def reconcile(self, owner: str) -> Reconciliation | None:
        """There is nothing to set right: what is kept here is changed by one process, in one step."""
        now = self._state.clock()
        if now - self._state.reconciled_at < RECONCILE_SECONDS:
            return None
        self._state.reconciled_at = now
        return Reconciliation()

    def _known(self, job: NewJob) -> Admission | None:
        """What became of an earlier request with this id or idempotency key. Raises IdempotencyMismatchError."""
        wanted = job.idempotency
        key = None if wanted is None else wanted.key
        record = (None if key is None else self._state.by_key(key)) or self._state.get(job.job_id)
        if record is None:
            return None
        held = record.new.idempotency
        if (held and held.fingerprint) != (wanted and wanted.fingerprint):
            raise IdempotencyMismatchError(job_id=record.job_id)
        chosen = wanted is not None and key is None
        position = self._state.queue.position(record)
        repeated = record.job_id == job.job_id and not chosen and not record.status.terminal
        return Admission(record.job_id, replayed=not repeated, queue_position=position)

    def _remember(self, job: NewJob) -> None:
        if job.idempotency is not None and job.idempotency.key is not None:
            self._state.keys[job.idempotency.key] = job.job_id

    def _hand_over(self, record: Record, owner: str) -> None:
        now = self._state.clock()
        record.owner = record.worker = owner
        record.attempt += 1
        record.lease_end = now + self._state.lease_seconds
        record.started_at = now if record.started_at is None else record.started_at

    def _end(
        self, record: Record, bodies: Sequence[bytes], view: RunView, outcome: Outcome, completed_at: float | None
    ) -> None:
        self._write(record, bodies, view)
        record.outputs, record.shown_outputs, record.error = outcome.outputs, outcome.shown_outputs, outcome.error
        record.execution_time = outcome.execution_time
        if record.canceled_by is None:
            record.canceled_by = outcome.canceled_by
        if record.cancel_reason is None:
            record.cancel_reason = outcome.cancel_reason
        for kind, seconds in outcome.latencies.items():
            self._state.observe(kind, seconds)
        for name, value in outcome.counters.items():
            self._state.count(name, value)
        self._state.end(record, outcome.status, outcome.terminal_event, completed_at=completed_at)

    def _write(self, record: Record, bodies: Sequence[bytes], view: RunView) -> None:
        if not record.new.keep_events:
            return
        record.progress = record.progress if view.progress is None else view.progress
        record.steps = record.steps if view.steps is None else view.steps
        self._state.add(record, bodies)

    def _view(self, record: Record, *, deliveries: bool) -> Job:
        return job_of(record, self._state.queue.position(record), deliveries=deliveries)


def _claim(record: Record, now: float) -> Claim:
    return Claim(
        job_id=record.job_id,
        attempt=record.attempt,
        deployment_id=record.new.deployment_id,
        run_name=record.new.run_name,
        parameters=record.parameters or b"{}",
        timeout=record.new.timeout,
        created_at=record.created_at,
        due_at=record.due_at,
        claimed_at=now,
        cache=record.new.cache,
        trace=record.new.trace,
    )


def _position(cursor: str) -> tuple[float, str]:
    created_at, _, job_id = cursor.partition(":")
    try:
        moment = float(created_at)
        if not math.isfinite(moment):
            raise ValueError(created_at)
        return moment, job_id
    except ValueError:
        raise BadRequestError(f"cursor: {cursor!r} is not one that this service gave") from None
