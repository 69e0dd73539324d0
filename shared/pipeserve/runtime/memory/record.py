"""One job, as the memory twin keeps it."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from pipeserve.errors import Problem
from pipeserve.jobs import JobStatus, WebhookDelivery
from pipeserve.runtime.ports import Attachment, LogEntry, NewJob, Webhook

MOST_DELIVERIES = 50
"""Newest tries of a webhook that its job's record shows."""


@dataclass(slots=True)
class Outgoing:
    """How far a job's webhook has come."""

    webhook: Webhook
    status: Literal["active", "done", "failed", "disabled"] = "active"
    after: int = 0
    """The number up to which the job's events have been dealt with."""
    attempt: int = 0
    due_at: float | None = None
    """When it is to be given to a sender next: Unix time in seconds. None: there is nothing to send."""
    deliveries: deque[WebhookDelivery] = field(default_factory=lambda: deque[WebhookDelivery](maxlen=MOST_DELIVERIES))


@dataclass(slots=True, eq=False)
class Record:
    """One job."""

    new: NewJob
    """What was known of it at first, without its parameters."""
    sync: bool
    status: JobStatus
    created_at: float
    due_at: float
    """When it could first start: its creation, or a later ``run_at``."""
    start_by: float | None
    """When it expires, unless it has started."""
    events: deque[LogEntry]
    parameters: bytes | None
    shown_parameters: bytes | None
    outgoing: Outgoing | None
    attempt: int = 0
    lost: int = 0
    owner: str | None = None
    worker: str | None = None
    lease_end: float = 0.0
    started_at: float | None = None
    completed_at: float | None = None
    forgotten_at: float | None = None
    execution_time: float | None = None
    progress: bytes | None = None
    steps: bytes | None = None
    outputs: bytes | None = None
    shown_outputs: bytes | None = None
    error: Problem | None = None
    canceled_by: str | None = None
    cancel_reason: str | None = None
    fenced_writes: int = 0
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

    def ended_by_attempt(self, attempt: int) -> bool:
        """Whether this attempt has ended the job, and not the store in its place."""
        return self.status.terminal and self.attempt == attempt and self.execution_time is not None
