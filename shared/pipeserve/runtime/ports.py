"""What the runtime and the services need from a job store, as Protocols.

``pipeserve.store`` implements them on Redis or Valkey, ``pipeserve.runtime.memory`` in this process. One contract
suite (``tests/contracts``) runs over both.

Who may write: an attempt owns its job from ``claim`` (or ``open``) until ``finish`` or until its lease runs out.
``append`` and ``finish`` carry the attempt's number and change nothing once another attempt owns the job.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pipeserve.errors import Problem
from pipeserve.jobs import Job, JobPage, JobStatus
from pipeserve.runtime.recording.brief import Brief
from pipeserve.sdk.deployment import Deployment

CacheUse = Literal["use", "no-cache", "no-store"]
"""What the step cache may do for a run: find and keep results, keep them only, or neither."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """What is known of a job before it runs."""

    job_id: str
    deployment_id: str
    pipeline_name: str
    run_name: str
    parameters: bytes
    """The request's ``parameters``: one JSON object, as sent."""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    timeout: float | None = None
    """Seconds that each attempt may take."""
    total_steps: int | None = None
    max_attempts: int = 3
    keep_parameters: bool = True
    """Whether ``Job.parameters`` shows them. If not, they leave the store when the job finishes."""
    shown_parameters: bytes | None = None
    """What ``Job.parameters`` shows instead, where some are masked; the true ones leave the store when the job
    finishes."""
    keep_events: bool = True
    """False: the log holds the terminal event only (``Capture(memory_only=True)``)."""
    cache: CacheUse = "use"


@dataclass(frozen=True, slots=True)
class Claim:
    """A job handed to a worker, with all that it needs to run it."""

    job_id: str
    attempt: int
    deployment_id: str
    run_name: str
    parameters: bytes
    timeout: float | None
    created_at: float
    """Unix time in seconds at which the job could first have started (by the store's clock)."""
    claimed_at: float
    cache: CacheUse = "use"


@dataclass(frozen=True, slots=True)
class RunView:
    """What a running job's record shows meanwhile: JSON of ``Job.progress`` and of ``Job.steps``. None: unchanged."""

    progress: bytes | None = None
    steps: bytes | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended."""

    status: JobStatus
    terminal_event: bytes
    """The encoded body of the one event that ends the log."""
    execution_time: float
    outputs: bytes | None = None
    """One JSON object, output name to value."""
    error: Problem | None = None
    shown_outputs: bytes | None = None
    """What ``Job.outputs`` shows instead, where some outputs are masked there."""
    latencies: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    """Seconds observed, by kind: ``sync``, ``async``, ``pickup``, ``step``."""
    counters: Mapping[str, float] = field(default_factory=dict[str, float])
    """What to add to the deployment's totals, by name: ``cache_hits``, ``cache_misses``, ``cache_saved_seconds`` …"""
    canceled_by: str | None = None
    """Who canceled the run, where its own process knows; what ``cancel`` has recorded before stays."""
    cancel_reason: str | None = None
    """Why, likewise."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One visualization of a job, as it is kept."""

    index: int
    """Its place among the job's visualizations, from 1."""
    name: str
    step_name: str | None
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A whole synchronous run, recorded after the fact."""

    job: NewJob
    owner: str
    """The process that ran it."""
    created_at: float
    started_at: float
    completed_at: float
    bodies: Sequence[bytes] | Brief
    """Event bodies before the terminal one, in order."""
    view: RunView
    outcome: Outcome
    attachments: Sequence[Attachment] = ()


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs to list, newest first."""

    status: JobStatus | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    limit: int = 100
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What a cancel found: the job's status after it, and whether the job had already ended before."""

    status: JobStatus
    already_finished: bool


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a renewal of leases found: jobs that the owner no longer holds, and jobs that it must cancel."""

    lost: tuple[str, ...] = ()
    canceling: tuple[str, ...] = ()


class JobLedger(Protocol):
    """The record of every job, and the queue of those that wait. It belongs to one deployment."""

    async def submit(self, job: NewJob) -> int:
        """Accept ``job``: record, ``job_queued`` event, queue entry and wake-up in one round trip.

        Returns its position in the queue, from 0. Raises QueueFullError, StoreUnavailableError.
        """
        ...

    async def open(self, job: NewJob, owner: str) -> None:
        """Record a synchronous run that this process executes as attempt 1, under a lease of ``owner``."""
        ...

    async def record(self, runs: Sequence[FinishedRun]) -> None:
        """Record synchronous runs that have ended; one round trip for all.

        A run that is open under the same owner ends so: its ``open`` was written although that seemed to fail. What
        has ended before stays as it is.
        """
        ...

    async def get(self, job_id: str) -> Job | None:
        """The job as it is now."""
        ...

    async def find(self, query: JobQuery) -> JobPage:
        """A page of jobs, newest first. Raises BadRequestError for a cursor that this ledger did not make."""
        ...

    async def cancel(self, job_id: str, *, reason: str | None = None, by: str | None = None) -> Cancellation | None:
        """End a pending job at once, or ask the owner of a running one to stop. None: there is no such job."""
        ...

    async def claim(self, owner: str, limit: int) -> list[Claim]:
        """Take up to ``limit`` due jobs, oldest first, each with a new attempt and a lease.

        Jobs whose lease ran out are given back first (``attempt_lost``), or end as ``worker_lost``.
        """
        ...

    async def claim_batch(self, owner: str, limit: int) -> tuple[list[Claim], float | None]:
        """As :meth:`claim`, and when the next job in the queue is due: Unix time in ms, by the store's clock."""
        ...

    async def renew(self, owner: str, job_ids: Sequence[str]) -> Renewal:
        """Extend the leases of ``owner``'s jobs by a whole lease from now.

        Then jobs of others whose lease ran out are taken back, as by :meth:`claim`.
        """
        ...

    async def append(self, job_id: str, attempt: int, bodies: Sequence[bytes], view: RunView) -> int:
        """Add events to the job's log and update its view. Returns the last number. Raises StaleAttemptError."""
        ...

    async def finish(self, job_id: str, attempt: int, bodies: Sequence[bytes], view: RunView, outcome: Outcome) -> bool:
        """Write the last events, state, result and terminal event together. Raises StaleAttemptError.

        False: nothing was written, because a cancel was accepted meanwhile and ``outcome`` is not ``canceled``;
        finish again as canceled.
        """
        ...

    async def release(self, owner: str, *, lost: bool) -> int:
        """Give back all that ``owner`` holds; returns how many. ``lost`` counts against their attempts (a crash),
        otherwise not (a drain). A synchronous run can't go on elsewhere: it ends as ``worker_lost``."""
        ...


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One numbered event; ``body`` is its encoding without the number (see :mod:`pipeserve.events`)."""

    seq: int
    body: bytes


@dataclass(frozen=True, slots=True)
class LogGap:
    """Events ``first`` to ``last`` (inclusive) are gone."""

    first: int
    last: int
    reason: str


class EventLog(Protocol):
    """Reads the jobs' logs. It belongs to one deployment."""

    async def read(self, job_id: str, *, after: int = 0, limit: int = 1000) -> list[LogEntry | LogGap]:
        """What follows number ``after``, at most ``limit`` entries; a gap stands first. Empty: nothing yet."""
        ...

    def follow(self, job_id: str, *, after: int = 0) -> AbstractAsyncContextManager[AsyncIterator[LogEntry | LogGap]]:
        """All that follows ``after``, as it happens, without hole or repeat; ends after the terminal event.

        The job must exist. It also ends when the log is closed (the process shuts down): the last entry then is no
        terminal event.
        """
        ...

    def close(self) -> None:
        """End all followers, now and later: the process shuts down."""
        ...


class CancelSignals(Protocol):
    """Tells the owners of running jobs which to stop. Lossy: the ledger's ``canceling`` state is the record."""

    def listen(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """The ids of jobs whose cancel was just accepted."""
        ...


class Leases(Protocol):
    """Keeps this process's claims alive while they run."""

    def add(self, job_id: str) -> None:
        """Renew this job's lease from now on."""
        ...

    def discard(self, job_id: str) -> None:
        """Renew it no longer."""
        ...


class Attachments(Protocol):
    """The visualizations of jobs. They live as long as the job's record. It belongs to one deployment."""

    async def add(self, job_id: str, attempt: int, attachments: Sequence[Attachment]) -> None:
        """Keep them with a job that this attempt owns; one with an index that is there replaces it.

        Raises StaleAttemptError, StoreUnavailableError.
        """
        ...

    async def list(self, job_id: str) -> list[Attachment]:
        """All of a job, by index, with their data."""
        ...

    async def get(self, job_id: str, index: int) -> Attachment | None:
        """One of a job."""
        ...


class Checkpoints(Protocol):
    """The results of finished durable steps of jobs that still run. It belongs to one deployment."""

    async def save(self, job_id: str, attempt: int, name: str, record: bytes) -> None:
        """Keep ``record`` under the step call's name until the job ends. Raises StaleAttemptError,
        StoreUnavailableError."""
        ...

    async def load(self, job_id: str) -> Mapping[str, bytes]:
        """All records of a job, by name. Raises StoreUnavailableError."""
        ...


class SharedCache(Protocol):
    """Step results that all processes of one deployment share."""

    async def get(self, key: str) -> tuple[bytes, float] | None:
        """A result and the seconds for which it may still be used. Raises StoreUnavailableError."""
        ...

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep ``value`` for ``ttl`` seconds. Raises StoreUnavailableError."""
        ...


@dataclass(frozen=True, slots=True)
class CacheGauges:
    """How full one process's step cache is."""

    entries: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One process that runs jobs, as ``/status`` shows it."""

    id: str
    host: str
    pid: int
    started_at: str
    busy: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of one kind of latency, in seconds. None: nothing was observed."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class ServiceFigures:
    """The whole service's figures, over all its processes."""

    completed: int
    failed: int
    """Ended as failed, timed_out or expired."""
    canceled: int
    execution_seconds: float
    """Sum over completed runs."""
    jobs_by_status: Mapping[str, int]
    queue_depth: int
    oldest_job_age: float
    """Seconds for which the oldest due job has waited; 0 when none waits."""
    last_execution: float | None
    """Unix time at which the last run ended."""
    latency: Mapping[str, Percentiles]
    workers: Sequence[WorkerInfo]
    counters: Mapping[str, float] = field(default_factory=dict[str, float])
    """The totals of :attr:`Outcome.counters`."""
    cache: CacheGauges = CacheGauges()
    """Sums over the processes that have told theirs of late (:meth:`Operations.tell_cache`)."""


class Operations(Protocol):
    """What an operator asks of a store. It belongs to one deployment."""

    async def figures(self) -> ServiceFigures:
        """The whole service's figures. Raises StoreUnavailableError."""
        ...

    async def tell_cache(self, owner: str, gauges: CacheGauges) -> None:
        """How full the step cache of process ``owner`` is; forgotten after 30 seconds. Raises StoreUnavailableError."""
        ...

    async def check(self) -> list[str]:
        """What makes this store unfit to keep jobs, in sentences. Empty: nothing. Raises StoreUnavailableError."""
        ...

    def describe(self) -> Mapping[str, object]:
        """The store's kind and address for ``/status``, without secrets."""
        ...


class DeploymentRegistry(Protocol):
    """The deployments of a store."""

    async def save(self, deployment: Deployment) -> Deployment:
        """Keep it, unless one of the same name, target and fingerprint is there: then that one is returned."""
        ...

    async def get(self, id_or_name: str) -> Deployment | None:
        """By UUID, or the newest of a name."""
        ...

    async def list(self) -> list[Deployment]:
        """All, newest first."""
        ...
