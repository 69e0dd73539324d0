"""How jobs look on a terminal and in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from pipeserve.jobs import Job

WIDE = 110
"""Columns of a terminal from which on the names of runs are shown too."""
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def write_jobs(jobs: Sequence[Job]) -> None:
    """A table on a terminal, else a line of tab-separated fields for each job."""
    if sys.stdout.isatty():
        _draw(jobs)
    else:
        for job in jobs:
            sys.stdout.write("\t".join(_row(job)) + "\n")


def write_job(job: Job) -> None:
    """All that there is to say about one job, a line for each field that is set."""
    lines = [(name, _text(value)) for name, value in _fields(job).items() if value not in (None, "", {}, [])]
    width = max(len(name) for name, _ in lines) + 1
    for name, text in lines:
        sys.stdout.write(f"{name + ':':{width}} {text}\n")


def _row(job: Job) -> tuple[str, ...]:
    # Tabs and line ends separate the fields and the jobs.
    return (*_outcome(job), " ".join(job.run_name.split()), _moment(job.created_at), _took(job) or "-")


def _draw(jobs: Sequence[Job]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    wide = console.width >= WIDE
    table = Table(box=None, pad_edge=False)
    for column in ("id", "status", "code", "age", "took"):
        table.add_column(column, no_wrap=True)
    if wide:
        table.add_column("name", no_wrap=True, overflow="ellipsis")
    now = datetime.now(UTC)
    for job in jobs:
        fields = [*_outcome(job), _age((now - job.created_at).total_seconds()), _took(job) or "-"]
        if wide:
            fields.append(" ".join(job.run_name.split()))
        table.add_row(*map(Text, fields))  # as Text: brackets in a name are no markup
    console.print(table if jobs else "No such jobs.")


def _outcome(job: Job) -> tuple[str, str, str]:
    return job.job_id, job.status.value, job.error.code if job.error else "-"


def _took(job: Job) -> str | None:
    return None if job.execution_time is None else f"{job.execution_time:.3f} s"


def _age(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return "0 s"


def _fields(job: Job) -> dict[str, Any]:
    error = None if job.error is None else f"{job.error.code}: {job.error.detail}"
    return {
        "job": job.job_id,
        "status": job.status.value,
        "error": error,
        "name": job.run_name,
        "pipeline": job.pipeline_name,
        "deployment": job.deployment_id,
        "labels": " ".join(f"{name}={value}" for name, value in job.labels.items()),
        "created": job.created_at,
        "not before": job.run_at,
        "expires": None if job.status.terminal else job.expires_at,
        "started": job.started_at,
        "ended": job.completed_at,
        "took": _took(job),
        "attempt": f"{job.attempt} of {job.max_attempts}" if job.attempt else None,
        "worker": job.worker,
        "priority": job.priority or None,
        "queue position": None if job.queue_position is None else f"{job.queue_position}",
        "expected end": None if job.eta is None else f"in {job.eta.p50:.3g} s; nine in ten within {job.eta.p90:.3g} s",
        "progress": _progress(job),
        "canceled by": job.canceled_by,
        "cancel reason": job.cancel_reason,
        "retry of": job.retried_from,
        "webhook": None if job.webhook is None else f"{job.webhook.url} ({job.webhook.status})",
        "refused writes": job.fenced_writes or None,
        "parameters": job.parameters,
        "outputs": job.outputs,
    }


def _progress(job: Job) -> str | None:
    if job.status.terminal or job.status.value == "pending":
        return None
    now_at = ", ".join(job.progress.current_steps)
    return f"{job.progress.percent:.0f} %" + (f", at {now_at}" if now_at else "")


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return _moment(value)
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def _moment(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
