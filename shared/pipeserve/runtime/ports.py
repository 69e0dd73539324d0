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
from typing import TYPE_CHECKING, Literal, Protocol, cast

from pipeserve.errors import Problem, ProblemError
from pipeserve.events import TERMINAL_EVENTS, TERMINAL_NAMES, event_type_of, sse_frame
from pipeserve.jobs import Job, JobPage, JobStatus, WebhookDelivery
from pipeserve.runtime.recording.brief import Brief
from pipeserve.sdk.deployment import Deployment

if TYPE_CHECKING:
    from pipeserve.runtime.follower import Follower

CacheUse = Literal["use", "no-cache", "no-store"]
"""What the step cache may do for a run: find and keep results, keep them only, or neither."""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """What makes a repeated request the same job."""

    fingerprint: str
    """Digest of the request's body: the same key with another one is refused."""
    key: str | None = None
    """Digest of the caller and of the caller's key. None: the job's id, which the caller chose, is the key."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where to send a job's events."""

    url: str
    events: tuple[str, ...]
    """The types of event to send."""

    @property
    def live(self) -> bool:
        """Whether it is to be sent more than the job's end."""
        return not TERMINAL_EVENTS.issuperset(self.events)


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
    caller: str = ""
    """Whose job it is: only this caller and admins see it. Empty: only admins."""
    lane: str = ""
    """Whose turn it takes. Lanes take turns at the workers; the jobs of one lane wait for one another."""
    priority: int = 0
    """-10 to 10. Within its lane a job goes before those that are one lower unless these have waited
    :data:`PRIORITY_SECONDS` longer."""
    run_at: float | None = None
    """Unix time in seconds before which it is not started."""
    expires_in: float | None = None
    """Seconds from its acceptance by which it must have been started; then it is ``expired``."""
    idempotency: IdempotencyKey | None = None
    retried_from: str | None = None
    webhook: Webhook | None = None
    trace: str | None = None
    """Of which trace it is: a W3C ``traceparent``, and after a space ``tracestate`` if there is one."""


PRIORITY_SECONDS = 60.0
"""What one step of priority is worth in waiting: so a job of low priority is never left behind for good."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a request to run something: the job that it is now."""

    job_id: str
    replayed: bool = False
    """The job was there already, under the same idempotency key or the id that its caller chose."""
    queue_position: int | None = None
    """From 0; None for a job that is not due yet, or no longer waits."""


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
    """Unix time in seconds at which the job was accepted (by the store's clock)."""
    due_at: float
    """Unix time in seconds at which it could first have started: ``created_at``, or a later ``run_at``."""
    claimed_at: float
    cache: CacheUse = "use"
    trace: str | None = None
    """As in :class:`NewJob`."""


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
    """Seconds observed, by kind: ``sync``, ``async``, ``pickup``, ``step``, ``run``, ``step/<name>``."""
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
    code: str | None = None
    """The code of the error that the job ended with."""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    caller: str | None = None
    """Only this caller's jobs; None: everybody's."""
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


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What a look at all live jobs has set right."""

    queued: int = 0
    """Jobs that waited in no queue."""
    released: int = 0
    """Jobs that ran under no lease."""
    forgotten: int = 0
    """Entries of indexes whose job is gone."""


class JobLedger(Protocol):
    """The record of every job, and the queue of those that wait. It belongs to one deployment."""

    async def submit(self, job: NewJob) -> Admission:
        """Accept ``job``: record, ``job_queued`` event, queue entry and wake-up in one round trip.

        Raises QueueFullError, whose ``retry_after`` is measured; IdempotencyMismatchError; StoreUnavailableError.
        """
        ...

    async def submit_many(self, jobs: Sequence[NewJob]) -> list[Admission | ProblemError]:
        """As :meth:`submit`, in one round trip for all; each is judged for itself. Raises StoreUnavailableError."""
        ...

    async def open(self, job: NewJob, owner: str) -> Admission:
        """Record a synchronous run that this process executes as attempt 1, under a lease of ``owner``.

        ``replayed``: there is a job under its idempotency key already, and nothing was opened. Raises
        IdempotencyMismatchError, StoreUnavailableError.
        """
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

    async def input_of(self, job_id: str) -> NewJob | None:
        """What the job was submitted as, to submit it again under another id: without its idempotency key, ``run_at``
        and ``expires_in``. None: there is no such job. Raises NotRetryableError where its parameters were not kept.
        """
        ...

    async def find(self, query: JobQuery) -> JobPage:
        """A page of jobs, newest first. Raises BadRequestError for a cursor that this ledger did not make."""
        ...

    async def cancel(self, job_id: str, *, reason: str | None = None, by: str | None = None) -> Cancellation | None:
        """End a pending job at once, or ask the owner of a running one to stop. None: there is no such job."""
        ...

    async def claim(self, owner: str, limit: int) -> list[Claim]:
        """Take up to ``limit`` due jobs, each with a new attempt and a lease.

        Lanes take turns; within a lane the oldest goes first, with its priority counted in. While few jobs wait, each
        worker process takes its share of them. Jobs whose lease ran out are given back before (``attempt_lost``), or
        end as ``worker_lost``; those that have waited too long end as ``expired``.
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

    async def append(
        self, job_id: str, attempt: int, bodies: Sequence[bytes], view: RunView, *, ending: bool = False
    ) -> int:
        """Add events to the job's log and update its view. Returns the last number. Raises StaleAttemptError.

        ``ending``: the run is over, and its end waits for this. A full store takes it then, as it takes the end.
        """
        ...

    async def finish(self, job_id: str, attempt: int, bodies: Sequence[bytes], view: RunView, outcome: Outcome) -> bool:
        """Write the last events, state, result and terminal event together. Raises StaleAttemptError.

        False: nothing was written, because a cancel was accepted meanwhile and ``outcome`` is not ``canceled``;
        finish again as canceled.
        """
        ...

    async def reconcile(self, owner: str) -> Reconciliation | None:
        """Set right what no crash should have left: jobs that wait in no queue, or run under no lease.

        None: another process does it now, or has of late. Raises StoreUnavailableError.
        """
        ...

    async def release(self, owner: str, *, lost: bool) -> int:
        """Give back all that ``owner`` holds; returns how many. ``lost`` counts against their attempts (a crash),
        otherwise not (a drain). A synchronous run can't go on elsewhere: it ends as ``worker_lost``."""
        ...


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One numbered event; ``body`` is its encoding without the number (see :mod:`pipeserve.events`).

    All followers of a job in a process share it, and so what was made of it once.
    """

    seq: int
    body: bytes
    _event_type: str | None = field(default=None, init=False, repr=False, compare=False)
    _frame: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def event_type(self) -> str:
        """What happened."""
        if self._event_type is None:
            object.__setattr__(self, "_event_type", event_type_of(self.body))
        return cast(str, self._event_type)

    @property
    def terminal(self) -> bool:
        """Whether it ends its log."""
        return self.event_type in TERMINAL_NAMES

    @property
    def frame(self) -> bytes:
        """The event as one block of Server-Sent Events."""
        if self._frame is None:
            object.__setattr__(self, "_frame", sse_frame(self.seq, self.body))
        return cast(bytes, self._frame)


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

    def follow(self, job_id: str, *, after: int = 0) -> AbstractAsyncContextManager[Follower]:
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

    async def add(self, job_id: str, attempt: int, attachments: Sequence[Attachment], *, ending: bool = False) -> None:
        """Keep them with a job that this attempt owns; one with an index that is there replaces it.

        ``ending``: as in :meth:`JobLedger.append`.
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
class DueWebhook:
    """A job that has, or may have, something to send."""

    job_id: str
    webhook: Webhook
    after: int
    """The number up to which its events have been dealt with."""
    attempt: int
    """Failed tries at the next event so far."""


@dataclass(frozen=True, slots=True)
class WebhookProgress:
    """How far a sender has come with one job's webhook."""

    after: int
    """The number up to which its events have been dealt with."""
    deliveries: Sequence[WebhookDelivery] = ()
    """New tries, for the job's record."""
    retry_in: float | None = None
    """Seconds after which to try the next event again."""
    attempt: int = 0
    """Failed tries at it."""
    status: Literal["active", "done", "failed", "disabled"] = "active"
    """Any other than ``active``: nothing more is sent for this job."""


class WebhookOutbox(Protocol):
    """The webhooks that have something to send. It belongs to one deployment."""

    async def due(self, limit: int, *, hold: float) -> tuple[list[DueWebhook], float | None]:
        """Up to ``limit`` that are due, held for ``hold`` seconds: nobody else is given them meanwhile.

        And in how many seconds the next one is due, as far as is known. Raises StoreUnavailableError.
        """
        ...

    async def settle(self, job_id: str, progress: WebhookProgress) -> None:
        """Note how far the sender has come and give the webhook back: due again after ``retry_in``, at once where
        events have come meanwhile, or with the next event. Raises StoreUnavailableError."""
        ...

    def news(self) -> AbstractAsyncContextManager[AsyncIterator[None]]:
        """Something may be due. Lossy: look now and then too."""
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
    drain_rate: float | None = None
    """Jobs that workers have taken from the queue per second of the last minute. None: none."""
    emptied_at: float | None = None
    """Unix time at which it was last noticed that all jobs had gone from the store; None: they have not."""
    durations: Mapping[str, Mapping[int, int]] = field(default_factory=dict[str, Mapping[int, int]])
    """Histograms behind ``latency`` (:mod:`pipeserve.runtime.latency`), by kind, and besides: ``run`` (execution
    times of completed runs) and ``step/<name>`` (of each step of the pipeline)."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a caller may use: ``size`` at once, refilled steadily over ``seconds``."""

    name: str
    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Spent:
    """What is left of a budget, and in how many seconds it is whole again."""

    budget: Budget
    left: int
    refill: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether budgets sufficed; if not, in how many seconds (``wait``) they will."""

    allowed: bool
    wait: float
    spent: Sequence[Spent]


class Limits(Protocol):
    """Counts what callers use, for all processes of a deployment together."""

    async def spend(self, caller: str, budgets: Sequence[Budget], amount: int = 1) -> Verdict:
        """Take ``amount`` of each budget, or of none; a negative amount is given back. Raises StoreUnavailableError."""
        ...


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

    async def condition(self) -> Mapping[str, object]:
        """For ``/status``: ``warnings``, in sentences, and ``emptied_at``, the time (RFC 3339) at which it was noticed
        that all jobs had gone from the store; None: they have not. Raises StoreUnavailableError."""
        ...

    async def tell_drill(self, report: bytes) -> None:
        """Keep the report of a drill (one JSON object) in place of the one before. Raises StoreUnavailableError."""
        ...

    async def last_drill(self) -> Mapping[str, object] | None:
        """The report of the last drill. Raises StoreUnavailableError."""
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
