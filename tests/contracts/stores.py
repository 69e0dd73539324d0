"""What the contract suite needs of a store, whichever it is."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeserve.errors import Problem, StepFailedError
from pipeserve.events import Event, EventType, encode_body
from pipeserve.jobs import TERMINAL_EVENT_OF, JobStatus, new_job_id
from pipeserve.runtime.memory import MemoryLedger
from pipeserve.runtime.ports import (
    Attachment,
    Attachments,
    CancelSignals,
    Checkpoints,
    DeploymentRegistry,
    EventLog,
    FinishedRun,
    Limits,
    LogEntry,
    LogGap,
    NewJob,
    Operations,
    Outcome,
    RunView,
    SharedCache,
    WebhookOutbox,
)
from pipeserve.store.ledger import RedisLedger

DEPLOYMENT = str(uuid.uuid4())
NO_VIEW = RunView()


@dataclass(frozen=True)
class Ports:
    """One deployment's ports, and how to let time pass there."""

    ledger: MemoryLedger | RedisLedger
    log: EventLog
    signals: CancelSignals
    operations: Operations
    attachments: Attachments
    checkpoints: Checkpoints
    cache: SharedCache
    webhooks: WebhookOutbox
    limits: Limits
    registry: DeploymentRegistry
    expire_leases: Callable[[], Awaitable[None]]
    pass_time: Callable[[float], Awaitable[None]]
    """As if so many seconds had passed for jobs that are queued or running, webhooks, and what is counted by time."""
    age_caches: Callable[[], Awaitable[None]]
    """As if what processes told of their step caches had been told 31 seconds earlier."""
    expire_records: Callable[[], Awaitable[None]]
    """As if a record's lifetime had passed."""
    everything: Callable[[], Awaitable[bytes]]
    """All that is stored, as bytes to search in."""
    close: Callable[[], None]
    event_log_max: int
    max_queue_size: int


def new_job(**changes: Any) -> NewJob:
    """A job nobody has submitted yet."""
    job = NewJob(
        job_id=new_job_id(),
        deployment_id=DEPLOYMENT,
        pipeline_name="serve",
        run_name="run",
        parameters=b'{"text":"hello"}',
        total_steps=2,
    )
    return replace(job, **changes)


def body(job_id: str, attempt: int = 1, event_type: EventType = EventType.LOG, **members: Any) -> bytes:
    """An encoded event."""
    return encode_body(Event(event_type, job_id, attempt, **members))


def outcome(job_id: str, attempt: int = 1, status: JobStatus = JobStatus.COMPLETED, **changes: Any) -> Outcome:
    """How an attempt ended."""
    problem: Problem | None = None
    if status is JobStatus.FAILED:
        problem = StepFailedError("it broke", job_id=job_id, step="double").problem()
    default = Outcome(
        status=status,
        terminal_event=body(job_id, attempt, TERMINAL_EVENT_OF[status], error=problem),
        execution_time=0.25,
        outputs=b'{"output":42}' if status is JobStatus.COMPLETED else None,
        error=problem,
    )
    return replace(default, **changes)


def picture(index: int = 1, **changes: Any) -> Attachment:
    """A visualization."""
    return replace(Attachment(index, "roc curve", "evaluate", "image/png", b"\x89PNG\r\n\x1a\n\x00\xff"), **changes)


def finished_run(now: float, **changes: Any) -> FinishedRun:
    """A synchronous run that has ended."""
    job = new_job(**changes)
    return FinishedRun(
        job=job,
        owner="api:1:abc",
        created_at=now - 0.3,
        started_at=now - 0.25,
        completed_at=now,
        bodies=[body(job.job_id, message=f"line {n}") for n in range(3)],
        view=RunView(progress=b'{"completed_steps":2,"total_steps":2,"percent":100.0}'),
        outcome=outcome(job.job_id, latencies={"sync": [0.25]}),
    )


def numbers(entries: Sequence[LogEntry | LogGap]) -> list[int]:
    """The numbers of the entries that are no gaps."""
    return [entry.seq for entry in entries if isinstance(entry, LogEntry)]
