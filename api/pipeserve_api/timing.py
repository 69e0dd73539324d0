"""How a job's time divides, in seconds: waiting, earlier attempts, its steps, and what lies between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from pipeserve.jobs import Job, JobStatus, StepReport


class Timing:
    """Where the time went, in seconds. None: not known, or not yet."""

    def __init__(self, job: Job, now: datetime) -> None:
        self._now = now.timestamp()
        spans = [(start, start + self.duration_of(step)) for step in job.steps if (start := start_of(step)) is not None]
        self.total = _between(job.created_at, job.completed_at or now)
        began = job.started_at or job.completed_at or now
        due = max(job.created_at, min(job.run_at or job.created_at, began))
        self.scheduled = _between(job.created_at, due)
        self.queued = _between(due, began)
        self.due_in = 0.0 if job.run_at is None else _between(now, job.run_at)
        self.expires_in = None if job.expires_at is None else _between(now, job.expires_at)
        self.began = _began(job, spans)
        self.running = self._running(job)
        first = job.started_at is not None and job.attempt == 1
        self.startup = max(min(spans)[0] - self.began, 0.0) if first and spans and self.began else None
        self.earlier = None
        if job.attempt > 1 and job.started_at is not None and self.began is not None:
            self.earlier = max(self.began - job.started_at.timestamp(), 0.0)
        self.steps_total = sum(end - start for start, end in spans)
        self.steps_elapsed = _covered(spans)
        self.overhead = None
        if job.execution_time is not None and spans:
            self.overhead = max(job.execution_time - self.steps_elapsed, 0.0)
        self.saved = sum(step.cache.saved for step in job.steps if step.cache is not None)

    def duration_of(self, step: StepReport) -> float:
        """How long the step took, or has taken so far."""
        if step.duration is not None:
            return step.duration
        start = start_of(step)
        return max(self._now - start, 0.0) if start is not None and step.status == "running" else 0.0

    def _running(self, job: Job) -> float | None:
        if job.execution_time is not None:
            return job.execution_time
        if self.began is None or job.status not in (JobStatus.RUNNING, JobStatus.CANCELING):
            return None
        return max(self._now - self.began, 0.0)

    def as_dict(self) -> dict[str, float | None]:
        """The figures by name."""
        return {
            "total": self.total,
            "scheduled": self.scheduled,
            "queued": self.queued,
            "earlier_attempts": self.earlier,
            "startup": self.startup,
            "running": self.running,
            "steps_total": self.steps_total,
            "steps_elapsed": self.steps_elapsed,
            "overhead": self.overhead,
            "saved": self.saved,
        }


def _began(job: Job, spans: Sequence[tuple[float, float]]) -> float | None:
    """Unix time at which the newest attempt began; for a second one the record has only what it did."""
    if job.started_at is None:
        return None
    if job.attempt <= 1:
        return job.started_at.timestamp()
    if job.completed_at is not None and job.execution_time is not None:
        return job.completed_at.timestamp() - job.execution_time
    return min(spans)[0] if spans else None


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """The time in which at least one of them was under way."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(end - max(start, until), 0.0)
        until = max(until, end)
    return covered


def start_of(step: StepReport) -> float | None:
    """Unix time at which the step began, if it has."""
    return None if step.started_at is None else step.started_at.timestamp()


def _between(start: datetime, end: datetime) -> float:
    return max((end - start).total_seconds(), 0.0)
