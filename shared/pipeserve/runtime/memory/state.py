"""What the memory twin's ports share: the jobs, and how they move between states."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pipeserve.errors import ExpiredError, JobCanceledError, Problem, StaleAttemptError, WorkerLostError
from pipeserve.events import Event, EventType, encode_body
from pipeserve.jobs import JobStatus
from pipeserve.runtime.latency import histogram
from pipeserve.runtime.memory.pace import Pace
from pipeserve.runtime.memory.queue import MemoryQueue
from pipeserve.runtime.memory.record import Outgoing, Record
from pipeserve.runtime.ports import CacheGauges, NewJob

Clock = Callable[[], float]
GAUGES_TTL = 30.0
"""Seconds for which it counts what a process told of its step cache."""


class MemoryState:
    """All jobs of one deployment, the counters over its life, and what its processes tell."""

    def __init__(
        self,
        *,
        clock: Clock | None,
        lease_seconds: float,
        max_queue_size: int,
        result_ttl: float,
        event_log_max: int,
    ) -> None:
        self.clock: Clock = clock or time.time
        self.lease_seconds = lease_seconds
        self.max_queue_size = max_queue_size
        self.result_ttl = result_ttl
        self.event_log_max = event_log_max
        self.records: dict[str, Record] = {}
        self.queue = MemoryQueue()
        self.pace = Pace()
        self.keys: dict[str, str] = {}
        """Idempotency keys and the jobs under them."""
        self.listeners: set[asyncio.Queue[str | None]] = set()
        self.senders: set[asyncio.Event] = set()
        """Who waits for webhooks that have something to send."""
        self.closed = False
        self.ended: Counter[str] = Counter()
        self.execution_seconds = 0.0
        self.last_execution: float | None = None
        self.durations: dict[str, Counter[int]] = {}
        self.counters: dict[str, float] = {}
        self.caches: dict[str, tuple[float, CacheGauges]] = {}
        self.reconciled_at = -math.inf
        self.drill: bytes | None = None

    def get(self, job_id: str) -> Record | None:
        """The record, unless it has expired."""
        record = self.records.get(job_id)
        if record is not None and record.forgotten_at is not None and record.forgotten_at <= self.clock():
            self._forget(record)
            return None
        return record

    def all(self) -> list[Record]:
        """Every record that has not expired."""
        return [record for job_id in list(self.records) if (record := self.get(job_id)) is not None]

    def create(self, job: NewJob, status: JobStatus, created_at: float, *, sync: bool) -> Record:
        """A new record, as yet without events."""
        shown = job.shown_parameters if job.keep_parameters else None
        record = Record(
            new=replace(job, parameters=b"", shown_parameters=None),
            sync=sync,
            status=status,
            created_at=created_at,
            due_at=max(created_at, job.run_at or 0.0),
            start_by=None if job.expires_in is None else created_at + job.expires_in,
            events=deque(maxlen=self.event_log_max),
            parameters=None,
            shown_parameters=shown,
            outgoing=None if job.webhook is None else Outgoing(job.webhook),
        )
        if record.keeps_parameters or not sync:
            record.parameters = job.parameters
        self.records[job.job_id] = record
        return record

    def by_key(self, key: str) -> Record | None:
        """The job under an idempotency key."""
        return self.get(self.keys.get(key, ""))

    def event(
        self,
        record: Record,
        event_type: EventType,
        data: Any = None,
        error: Problem | None = None,
        message: str | None = None,
    ) -> bytes:
        """An event that the store itself makes."""
        return encode_body(
            Event(
                event_type, record.job_id, record.attempt, self.clock(), message=message, data=data or {}, error=error
            )
        )

    def add(self, record: Record, bodies: Sequence[bytes]) -> None:
        """Add events to a job's log, for its webhook too."""
        for body in bodies:
            record.add(body)
        if bodies and record.outgoing is not None and record.outgoing.webhook.live:
            self._post(record.outgoing)

    def owned(self, job_id: str, attempt: int) -> Record:
        """The job, if this attempt may write to it. Raises StaleAttemptError."""
        record = self.get(job_id)
        if record is None or not record.owned_by_attempt(attempt):
            self._refuse(record, attempt)
            raise StaleAttemptError.of(job_id, attempt)
        return record

    def end(
        self, record: Record, status: JobStatus, terminal_event: bytes, *, completed_at: float | None = None
    ) -> None:
        """The job has reached a terminal state."""
        self.queue.discard(record)
        record.status = status
        record.completed_at = self.clock() if completed_at is None else completed_at
        record.forgotten_at = self.clock() + self.result_ttl
        record.owner = None
        record.checkpoints.clear()
        if not record.keeps_parameters:
            record.parameters = None
        name = status if status in (JobStatus.COMPLETED, JobStatus.CANCELED) else JobStatus.FAILED
        self.ended[name] += 1
        if status is JobStatus.COMPLETED:
            self.execution_seconds += record.execution_time or 0.0
        if record.started_at is not None:
            self.last_execution = record.completed_at
        record.add(terminal_event)
        if record.outgoing is not None:
            if not record.outgoing.webhook.live:  # a receiver that wants the end alone need not read what stands before
                record.outgoing.after = record.last_seq - 1
            self._post(record.outgoing)

    def end_canceled(self, record: Record, data: Any = None) -> None:
        """Nobody runs it, and a cancel was asked for."""
        because = None if record.cancel_reason is None else f"The job was canceled: {record.cancel_reason}"
        record.error = JobCanceledError(because).problem(job_id=record.job_id)
        body = self.event(record, EventType.PIPELINE_CANCELED, data, record.error)
        self.end(record, JobStatus.CANCELED, body)

    def take_back(self, record: Record, reason: str, *, counts: bool) -> None:
        """Take a held job from its owner: back to the queue, or to its end."""
        if record.status is JobStatus.CANCELING:
            self.end_canceled(record)
            return
        if not record.sync:
            record.lost += counts
            if record.new.keep_events:
                self.add(record, [self.event(record, EventType.ATTEMPT_LOST, {"reason": reason})])
        if record.sync or (counts and record.lost >= record.new.max_attempts):
            record.error = WorkerLostError().problem(job_id=record.job_id)
            body = self.event(record, EventType.PIPELINE_FAILED, {"reason": reason}, record.error)
            self.end(record, JobStatus.FAILED, body)
            return
        record.status = JobStatus.PENDING
        record.owner = None
        self.queue.add(record, self.clock(), back=True)

    def catch_up(self) -> None:
        """What time has done: silent owners lose their jobs, jobs expire, and jobs become due."""
        now = self.clock()
        for record in self.all():
            if record.held and record.lease_end <= now:
                self.take_back(record, "lease_expired", counts=True)
        for record in self.queue.waiting():
            if record.start_by is not None and record.start_by <= now and record.started_at is None:
                record.error = ExpiredError().problem(job_id=record.job_id)
                body = self.event(record, EventType.PIPELINE_EXPIRED, error=record.error)
                self.end(record, JobStatus.EXPIRED, body)
        self.queue.wake(now)

    def observe(self, kind: str, seconds: Sequence[float]) -> None:
        """Count latencies."""
        self.durations.setdefault(kind, Counter()).update(histogram(seconds))

    def count(self, name: str, value: float) -> None:
        """Add to a counter, unless ``value`` is no finite number."""
        if value and math.isfinite(value):
            self.counters[name] = self.counters.get(name, 0.0) + value

    def told_caches(self) -> list[CacheGauges]:
        """What processes told of their step caches of late; what is older is forgotten."""
        oldest = self.clock() - GAUGES_TTL
        self.caches = {owner: told for owner, told in self.caches.items() if told[0] >= oldest}
        return [gauges for _, gauges in self.caches.values()]

    def tell_senders(self) -> None:
        """A webhook may have something to send."""
        for sender in self.senders:
            sender.set()

    def _post(self, outgoing: Outgoing) -> None:
        if outgoing.status == "active" and outgoing.due_at is None:
            outgoing.due_at = self.clock()
        self.tell_senders()

    def _refuse(self, record: Record | None, attempt: int) -> None:
        """Count a write by an attempt that lost its job. One that ended it itself only repeats what was written."""
        if record is not None:
            if record.ended_by_attempt(attempt):
                return
            record.fenced_writes += 1
        self.count("fenced_writes", 1.0)

    def _forget(self, record: Record) -> None:
        del self.records[record.job_id]
        key = record.new.idempotency and record.new.idempotency.key
        if key is not None and self.keys.get(key) == record.job_id:
            del self.keys[key]
