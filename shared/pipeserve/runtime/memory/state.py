"""What the memory twin's ports share: the jobs, and how they move between states."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from pydantic_core import from_json

from pipeserve.errors import JobCanceledError, Problem, WorkerLostError
from pipeserve.events import Event, EventType, encode_body
from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import Attachment, CacheGauges, LogEntry, NewJob

logger = logging.getLogger(__name__)

Clock = Callable[[], float]
MOST_LATENCIES = 10_000
"""Newest observations of each kind that percentiles are taken from."""
GAUGES_TTL = 30.0
"""Seconds for which it counts what a process told of its step cache."""


@dataclass(slots=True, eq=False)
class Record:
    """One job."""

    new: NewJob
    """What was known of it at first, without its parameters."""
    sync: bool
    status: JobStatus
    created_at: float
    events: deque[LogEntry]
    parameters: bytes | None
    shown_parameters: bytes | None
    attempt: int = 0
    lost: int = 0
    owner: str | None = None
    worker: str | None = None
    lease_end: float = 0.0
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    execution_time: float | None = None
    progress: bytes | None = None
    steps: bytes | None = None
    outputs: bytes | None = None
    shown_outputs: bytes | None = None
    error: Problem | None = None
    canceled_by: str | None = None
    cancel_reason: str | None = None
    last_seq: int = 0
    told_unreadable: bool = False
    followers: set[asyncio.Event] = field(default_factory=set[asyncio.Event])
    attachments: dict[int, Attachment] = field(default_factory=dict[int, Attachment])
    checkpoints: dict[str, bytes] = field(default_factory=dict[str, bytes])

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.new.job_id

    @property
    def held(self) -> bool:
        """Whether an owner has it."""
        return self.status in (JobStatus.RUNNING, JobStatus.CANCELING)

    @property
    def keeps_parameters(self) -> bool:
        """Whether its true parameters are shown, and so outlive the run."""
        return self.new.keep_parameters and self.shown_parameters is None

    @property
    def order(self) -> tuple[float, str]:
        """Older jobs first."""
        return self.created_at, self.job_id

    def add(self, body: bytes) -> None:
        """Number one event and tell the followers."""
        self.last_seq += 1
        self.events.append(LogEntry(self.last_seq, body))
        for follower in self.followers:
            follower.set()

    def owned_by_attempt(self, attempt: int) -> bool:
        """Whether this attempt may write."""
        return self.held and self.attempt == attempt


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
        self.listeners: set[asyncio.Queue[str | None]] = set()
        self.closed = False
        self.ended: Counter[str] = Counter()
        self.execution_seconds = 0.0
        self.last_execution: float | None = None
        self.latencies: dict[str, deque[float]] = {}
        self.counters: dict[str, float] = {}
        self.caches: dict[str, tuple[float, CacheGauges]] = {}

    def get(self, job_id: str) -> Record | None:
        """The record, unless it has expired."""
        record = self.records.get(job_id)
        if record is not None and record.expires_at is not None and record.expires_at <= self.clock():
            del self.records[job_id]
            return None
        return record

    def all(self) -> list[Record]:
        """Every record that has not expired."""
        return [record for job_id in list(self.records) if (record := self.get(job_id)) is not None]

    def queue(self) -> list[Record]:
        """Those that wait, oldest first."""
        waiting = (record for record in self.records.values() if record.status is JobStatus.PENDING)
        return sorted(waiting, key=lambda record: record.order)

    def create(self, job: NewJob, status: JobStatus, created_at: float, *, sync: bool) -> Record:
        """A new record, as yet without events."""
        shown = job.shown_parameters if job.keep_parameters else None
        record = Record(
            new=replace(job, parameters=b"", shown_parameters=None),
            sync=sync,
            status=status,
            created_at=created_at,
            events=deque(maxlen=self.event_log_max),
            parameters=None,
            shown_parameters=shown,
        )
        if record.keeps_parameters or not sync:
            record.parameters = job.parameters
        self.records[job.job_id] = record
        return record

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

    def end(
        self, record: Record, status: JobStatus, terminal_event: bytes, *, completed_at: float | None = None
    ) -> None:
        """The job has reached a terminal state."""
        record.status = status
        record.completed_at = self.clock() if completed_at is None else completed_at
        record.expires_at = self.clock() + self.result_ttl
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
                record.add(self.event(record, EventType.ATTEMPT_LOST, {"reason": reason}))
        if record.sync or (counts and record.lost >= record.new.max_attempts):
            record.error = WorkerLostError().problem(job_id=record.job_id)
            body = self.event(record, EventType.PIPELINE_FAILED, {"reason": reason}, record.error)
            self.end(record, JobStatus.FAILED, body)
            return
        record.status = JobStatus.PENDING
        record.owner = None

    def take_back_overdue(self) -> None:
        """Take back jobs whose owner fell silent."""
        for record in self.all():
            if record.held and record.lease_end <= self.clock():
                self.take_back(record, "lease_expired", counts=True)

    def observe(self, kind: str, seconds: list[float]) -> None:
        """Count latencies."""
        self.latencies.setdefault(kind, deque(maxlen=MOST_LATENCIES)).extend(seconds)

    def count(self, name: str, value: float) -> None:
        """Add to a counter, unless ``value`` is no finite number."""
        if value and math.isfinite(value):
            self.counters[name] = self.counters.get(name, 0.0) + value

    def told_caches(self) -> list[CacheGauges]:
        """What processes told of their step caches of late; what is older is forgotten."""
        oldest = self.clock() - GAUGES_TTL
        self.caches = {owner: told for owner, told in self.caches.items() if told[0] >= oldest}
        return [gauges for _, gauges in self.caches.values()]


def object_or_none(record: Record, name: str, value: bytes | None) -> dict[str, Any] | None:
    """The encoded JSON object, its integers with all their digits. None, and a warning once, if it is none."""
    if value is None:
        return None
    try:
        read = from_json(value)
    except ValueError:
        read = None
    if isinstance(read, dict):
        return cast(dict[str, Any], read)
    if not record.told_unreadable:
        record.told_unreadable = True
        logger.warning("the stored record of job %s can't be read in full: %s", record.job_id, name)
    return None
