"""From the hash that the scripts write to the :class:`Job` that everybody reads."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from pipeserve.errors import Problem
from pipeserve.jobs import Job, JobStatus, Links, Progress, StepReport


def read_job(job_id: str, fields: Mapping[bytes, bytes], queue_position: int | None) -> Job:
    """The job with this record."""
    status = JobStatus(fields[b"status"].decode())
    total_steps = fields[b"total_steps"]
    return Job(
        job_id=job_id,
        run_id=job_id,
        run_name=fields[b"run_name"].decode(),
        status=status,
        pipeline_name=fields[b"pipeline_name"].decode(),
        deployment_id=fields[b"deployment_id"].decode(),
        parameters=_json(fields.get(b"parameters")) if fields[b"keep_parameters"] == b"1" else None,
        labels=_json(fields[b"labels"]),
        created_at=_moment(fields[b"created_at"]),
        started_at=_optional_moment(fields.get(b"started_at")),
        completed_at=_optional_moment(fields.get(b"completed_at")),
        attempt=int(fields[b"attempt"]),
        max_attempts=int(fields[b"max_attempts"]),
        worker=_text(fields.get(b"worker")),
        execution_time=float(fields[b"execution_time"]) if b"execution_time" in fields else None,
        progress=(
            Progress.model_validate_json(fields[b"progress"])
            if b"progress" in fields
            else Progress(total_steps=int(total_steps) if total_steps else None)
        ),
        steps=[StepReport.model_validate(step) for step in _json(fields.get(b"steps")) or ()],
        queue_position=queue_position if status is JobStatus.PENDING else None,
        outputs=_json(fields.get(b"outputs")),
        error=Problem.model_validate_json(fields[b"error"]) if b"error" in fields else None,
        canceled_by=_text(fields.get(b"canceled_by")),
        cancel_reason=_text(fields.get(b"cancel_reason")),
        last_seq=int(fields[b"last_seq"]),
        links=Links.of(job_id),
    )


def _json(value: bytes | None) -> Any:
    return None if value is None else orjson.loads(value)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _moment(microseconds: bytes) -> datetime:
    return datetime.fromtimestamp(int(microseconds) / 1e6, UTC)


def _optional_moment(microseconds: bytes | None) -> datetime | None:
    return None if microseconds is None else _moment(microseconds)
