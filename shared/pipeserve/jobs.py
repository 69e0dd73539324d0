"""The job: one request's record, its states, and which follow which.

::

    pending ──► running ──► completed | failed | timed_out
       │           └─────► canceling ──► canceled
       └──► canceled | expired

Terminal states never change.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeserve.errors import Problem
from pipeserve.events import EventType


class JobStatus(StrEnum):
    """Where a job is."""

    PENDING = "pending"
    RUNNING = "running"
    CANCELING = "canceling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    TIMED_OUT = "timed_out"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        """Whether this state is an end."""
        return self in TERMINAL_EVENT_OF


TERMINAL_EVENT_OF = {
    JobStatus.COMPLETED: EventType.PIPELINE_COMPLETED,
    JobStatus.FAILED: EventType.PIPELINE_FAILED,
    JobStatus.CANCELED: EventType.PIPELINE_CANCELED,
    JobStatus.TIMED_OUT: EventType.PIPELINE_TIMED_OUT,
    JobStatus.EXPIRED: EventType.PIPELINE_EXPIRED,
}
"""Each terminal state with the event that ends its log."""


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class CacheReceipt(_Wire):
    """What the step cache did for one call. Durations are in seconds."""

    status: Literal["hit", "shared_hit", "joined", "miss", "bypass"] = Field(
        description="joined: an equal call was under way and its result was used; bypass: the request said no-cache"
    )
    reason: str | None = Field(
        default=None, description="Why it was a miss: first_call, changed, expired, evicted, unhashable"
    )
    changed: list[str] = Field(
        default_factory=list[str], description="Which parts of the key differ from the nearest earlier call"
    )
    detail: str | None = Field(default=None, description="In words, where there is more to say")
    saved: float = Field(default=0.0, description="How long the call took that computed the value")
    age: float | None = Field(default=None, description="How old the value was")
    ttl: float | None = Field(default=None, description="For how long it may still be used")
    stored: bool = Field(default=False, description="Whether a miss was kept for later calls")


class StepReport(_Wire):
    """One step call of a job. ``duration`` is in seconds."""

    name: str
    status: str = Field(description="pending, running, completed, failed, canceled or timed_out")
    attempt: int = 1
    started_at: datetime | None = None
    duration: float | None = None
    cached: bool = False
    calls: int = Field(default=1, description="How often the step was called: more than once after a retry")
    cache: CacheReceipt | None = None
    batch: int | None = Field(default=None, description="How many calls were gathered into one, for a batched step")
    resumed: bool = Field(default=False, description="Whether an earlier attempt's checkpoint was used")


class Progress(_Wire):
    """How far a job is. ``percent`` is 0 to 100; ``total_steps`` is null for a dynamic pipeline that still runs."""

    completed_steps: int = 0
    total_steps: int | None = None
    percent: float = 0.0
    current_steps: list[str] = Field(default_factory=list[str])
    message: str | None = None


class Links(_Wire):
    """Where to go from here, relative to the service."""

    self: str
    events: str
    stream: str
    cancel: str
    result: str

    @classmethod
    def of(cls, job_id: str) -> Links:
        """The links of one job."""
        job = f"/jobs/{job_id}"
        return cls(
            self=job, events=f"{job}/events", stream=f"/stream/{job_id}", cancel=f"{job}/cancel", result=f"{job}/result"
        )


class Eta(_Wire):
    """In how many seconds a live job will have ended: as likely as not (``p50``), and nine times in ten (``p90``)."""

    p50: float
    p90: float


class WebhookDelivery(_Wire):
    """One try to deliver one event. ``duration`` is in seconds."""

    seq: int = Field(description="The number of the event in the job's log")
    event_type: str
    attempt: int = Field(description="Tries at this event, from 1")
    at: datetime
    status_code: int | None = Field(default=None, description="What the receiver answered; null: it did not")
    error: str | None = Field(default=None, description="Why the try failed")
    duration: float = 0.0


class WebhookReport(_Wire):
    """Where a job's events are sent, and what came of it."""

    url: str
    events: list[str] = Field(description="The types of event that are sent")
    status: Literal["active", "done", "failed", "disabled"] = Field(
        default="active", description="failed: tries were used up; disabled: the receiver answered 410"
    )
    deliveries: list[WebhookDelivery] = Field(
        default_factory=list[WebhookDelivery], description="The newest tries, oldest first; only where one job is shown"
    )


class Job(_Wire):
    """One request, sync or async, as ``GET /jobs/{id}`` shows it. Durations are in seconds."""

    job_id: str
    run_id: str
    run_name: str
    caller: str | None = Field(
        default=None, description="Whose key it came with, where that key sees its own jobs only"
    )
    status: JobStatus
    pipeline_name: str
    deployment_id: str
    parameters: dict[str, Any] | None = None
    labels: dict[str, str] = Field(default_factory=dict[str, str])
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    run_at: datetime | None = None
    attempt: int = 0
    max_attempts: int = 1
    worker: str | None = None
    execution_time: float | None = None
    progress: Progress = Field(default_factory=Progress)
    steps: list[StepReport] = Field(default_factory=list[StepReport])
    priority: int = 0
    queue_position: int | None = Field(default=None, description="From 0; null for a job that is not due or runs")
    eta: Eta | None = Field(default=None, description="Of a live job whose pipeline has been measured")
    outputs: dict[str, Any] | None = None
    result: dict[str, Any] | None = Field(
        default=None, exclude=True, description="The outputs with nothing masked, for the result's own route"
    )
    error: Problem | None = None
    canceled_by: str | None = None
    cancel_reason: str | None = None
    retried_from: str | None = None
    expires_at: datetime | None = Field(default=None, description="A job that has not started by then expires")
    webhook: WebhookReport | None = None
    fenced_writes: int = Field(
        default=0, description="Writes that were refused because they came from an attempt that had lost the job"
    )
    last_seq: int = Field(default=0, description="The number of the newest event in the job's log")
    links: Links


class JobPage(_Wire):
    """One page of jobs, newest first. ``total`` counts all that match, on every page."""

    jobs: list[Job]
    total: int
    next_cursor: str | None = None


def new_job_id() -> str:
    """A UUIDv7 (RFC 9562): its text sorts by time, to the millisecond."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10))
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return str(uuid.UUID(int=value))


def is_job_id(text: str) -> bool:
    """Whether ``text`` could be a job's id: a UUID in its usual form. Anything else is unknown without a look-up."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
