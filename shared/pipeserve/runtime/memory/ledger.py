"""The record of every job in this process, and the queue of those that wait."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter

from pipeserve.errors import BadRequestError, QueueFullError, StaleAttemptError
from pipeserve.events import EventType
from pipeserve.jobs import Job, JobPage, JobStatus, Links, Progress, StepReport
from pipeserve.runtime.memory.state import MemoryState, Record, object_or_none
from pipeserve.runtime.ports import Cancellation, Claim, FinishedRun, JobQuery, NewJob, Outcome, Renewal, RunView
from pipeserve.runtime.recording.brief import Brief

_STEPS = TypeAdapter(list[StepReport])


class MemoryLedger:
    """A ``JobLedger`` in this process. Nothing here waits, so each call is one step for everybody else."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def submit(self, job: NewJob) -> int:
        """Accept ``job``; its position in the queue. Raises QueueFullError."""
        state = self._state
        queue = state.queue()
        known = state.get(job.job_id)
        if known is not None:
            return queue.index(known) if known in queue else 0
        if len(queue) >= state.max_queue_size:
            raise QueueFullError(f"the queue is full: {state.max_queue_size} jobs wait; try again later")
        record = state.create(job, JobStatus.PENDING, state.clock(), sync=False)
        if job.keep_events:
            record.add(state.event(record, EventType.JOB_QUEUED, {"queue_position": len(queue)}))
        return len(queue)

    async def open(self, job: NewJob, owner: str) -> None:
        """Record a synchronous run of this process as attempt 1, under a lease of ``owner``."""
        if self._state.get(job.job_id) is None:
            record = self._state.create(job, JobStatus.RUNNING, self._state.clock(), sync=True)
            self._hand_over(record, owner)

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
        return None if record is None else self._view(record)

    async def find(self, query: JobQuery) -> JobPage:
        """A page of jobs, newest first. Raises BadRequestError for a cursor that this ledger did not make."""
        wanted = dict(query.labels).items()
        found = [
            record
            for record in self._state.all()
            if query.status in (None, record.status) and wanted <= dict(record.new.labels).items()
        ]
        found.sort(key=lambda record: record.order, reverse=True)
        after = None if query.cursor is None else _position(query.cursor)
        rest = [record for record in found if after is None or record.order < after]
        page = rest[: query.limit]
        more = len(rest) > query.limit and bool(page)
        return JobPage(
            jobs=[self._view(record) for record in page],
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
                record.add(state.event(record, EventType.CANCELLATION_REQUESTED, data, message=reason))
            if record.status is JobStatus.PENDING:
                state.end_canceled(record, data)
                return Cancellation(record.status, already_finished=False)
            record.status = JobStatus.CANCELING
        for listener in state.listeners:
            listener.put_nowait(job_id)
        return Cancellation(record.status, already_finished=False)

    async def claim(self, owner: str, limit: int) -> list[Claim]:
        """Take up to ``limit`` due jobs, oldest first, after taking back those whose lease ran out."""
        claims, _ = await self.claim_batch(owner, limit)
        return claims

    async def claim_batch(self, owner: str, limit: int) -> tuple[list[Claim], float | None]:
        """As ``claim``, and the Unix time in ms at which the next queued job is due, if any."""
        state, now = self._state, self._state.clock()
        state.take_back_overdue()
        queue = state.queue()
        for record in queue[:limit]:
            record.status = JobStatus.RUNNING
            record.progress = record.steps = None
            self._hand_over(record, owner)
        claims = [
            Claim(
                job_id=record.job_id,
                attempt=record.attempt,
                deployment_id=record.new.deployment_id,
                run_name=record.new.run_name,
                parameters=record.parameters or b"{}",
                timeout=record.new.timeout,
                created_at=record.created_at,
                claimed_at=now,
                cache=record.new.cache,
            )
            for record in queue[:limit]
        ]
        return claims, queue[limit].created_at * 1000 if len(queue) > limit else None

    async def renew(self, owner: str, job_ids: Sequence[str]) -> Renewal:
        """Extend the leases of these jobs by a whole lease from now; says which are lost and which to cancel.

        Then jobs of others whose lease ran out are taken back.
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
        self._state.take_back_overdue()
        return Renewal(tuple(lost), tuple(canceling))

    async def append(self, job_id: str, attempt: int, bodies: Sequence[bytes], view: RunView) -> int:
        """Add events to the job's log and update its view. Returns the last number. Raises StaleAttemptError."""
        record = self._state.get(job_id)
        if record is None or not record.owned_by_attempt(attempt):
            raise StaleAttemptError.of(job_id, attempt)
        _write(record, bodies, view)
        return record.last_seq

    async def finish(self, job_id: str, attempt: int, bodies: Sequence[bytes], view: RunView, outcome: Outcome) -> bool:
        """Write the last events, state, result and terminal event together. Raises StaleAttemptError.

        False: nothing was written, because a cancel was accepted meanwhile and ``outcome`` is not ``canceled``.
        """
        record = self._state.get(job_id)
        if record is None or record.attempt != attempt:
            raise StaleAttemptError.of(job_id, attempt)
        if record.status is outcome.status and record.execution_time is not None:
            return True  # a repetition: this attempt has ended it so before
        if not record.held:
            raise StaleAttemptError.of(job_id, attempt)
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

    def _hand_over(self, record: Record, owner: str) -> None:
        now = self._state.clock()
        record.owner = record.worker = owner
        record.attempt += 1
        record.lease_end = now + self._state.lease_seconds
        record.started_at = now if record.started_at is None else record.started_at

    def _end(
        self, record: Record, bodies: Sequence[bytes], view: RunView, outcome: Outcome, completed_at: float | None
    ) -> None:
        _write(record, bodies, view)
        record.outputs, record.shown_outputs, record.error = outcome.outputs, outcome.shown_outputs, outcome.error
        record.execution_time = outcome.execution_time
        if record.canceled_by is None:
            record.canceled_by = outcome.canceled_by
        if record.cancel_reason is None:
            record.cancel_reason = outcome.cancel_reason
        for kind, seconds in outcome.latencies.items():
            self._state.observe(kind, list(seconds))
        for name, value in outcome.counters.items():
            self._state.count(name, value)
        self._state.end(record, outcome.status, outcome.terminal_event, completed_at=completed_at)

    def _view(self, record: Record) -> Job:
        new, pending = record.new, record.status is JobStatus.PENDING
        result = object_or_none(record, "outputs", record.outputs)
        return Job(
            job_id=record.job_id,
            run_id=record.job_id,
            run_name=new.run_name,
            status=record.status,
            pipeline_name=new.pipeline_name,
            deployment_id=new.deployment_id,
            parameters=_parameters(record),
            labels=dict(new.labels),
            created_at=datetime.fromtimestamp(record.created_at, UTC),
            started_at=_moment(record.started_at),
            completed_at=_moment(record.completed_at),
            attempt=record.attempt,
            max_attempts=new.max_attempts,
            worker=record.worker,
            execution_time=record.execution_time,
            progress=(
                Progress(total_steps=new.total_steps)
                if record.progress is None
                else Progress.model_validate_json(record.progress)
            ),
            steps=[] if record.steps is None else _STEPS.validate_json(record.steps),
            queue_position=self._state.queue().index(record) if pending else None,
            outputs=(
                result
                if record.shown_outputs is None
                else object_or_none(record, "shown_outputs", record.shown_outputs)
            ),
            result=result,
            error=record.error,
            canceled_by=record.canceled_by,
            cancel_reason=record.cancel_reason,
            last_seq=record.last_seq,
            links=Links.of(record.job_id),
        )


def _write(record: Record, bodies: Sequence[bytes], view: RunView) -> None:
    if not record.new.keep_events:
        return
    record.progress = record.progress if view.progress is None else view.progress
    record.steps = record.steps if view.steps is None else view.steps
    for body in bodies:
        record.add(body)


def _parameters(record: Record) -> dict[str, Any] | None:
    if record.shown_parameters is not None:
        return object_or_none(record, "shown_parameters", record.shown_parameters)
    return object_or_none(record, "parameters", record.parameters) if record.keeps_parameters else None


def _position(cursor: str) -> tuple[float, str]:
    created_at, _, job_id = cursor.partition(":")
    try:
        moment = float(created_at)
        if not math.isfinite(moment):
            raise ValueError(created_at)
        return moment, job_id
    except ValueError:
        raise BadRequestError(f"cursor: {cursor!r} is not one that this service gave") from None


def _moment(timestamp: float | None) -> datetime | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)
