"""From the hash that the scripts write to the :class:`Job` that everybody reads.

Stored bytes are read tolerantly: one record that an older version, or another program, wrote must not take a whole
listing with it. A field that can't be read is absent, and the log says so, once per job.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter
from pydantic_core import from_json

from pipeserve.errors import Problem
from pipeserve.jobs import Job, JobStatus, Links, Progress, StepReport, WebhookDelivery, WebhookReport

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_D = TypeVar("_D")
_UNREADABLE = (ValueError, OverflowError, OSError)  # the last two: moments that no clock shows
_MOST_TOLD = 10_000

_LABELS = TypeAdapter(dict[str, str])
_STEPS = TypeAdapter(list[StepReport])


class RecordReader:
    """Reads records, and remembers which bad ones it has told the log of."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def read(
        self,
        job_id: str,
        fields: Mapping[bytes, bytes],
        queue_position: int | None,
        deliveries: Sequence[bytes] = (),
    ) -> Job | None:
        """The job with this record; None where not even its state can be read. ``deliveries``: of its webhook."""
        record = _Record(fields, deliveries)
        job = record.job(job_id, queue_position)
        if record.unreadable and job_id not in self._told:
            if len(self._told) >= _MOST_TOLD:
                self._told.clear()
            self._told.add(job_id)
            logger.warning(
                "the stored record of job %s can't be read in full: %s",
                job_id,
                ", ".join(record.unreadable),
                extra={"job_id": job_id},
            )
        return job


class _Record:
    """One hash, and which of its fields were in vain."""

    def __init__(self, fields: Mapping[bytes, bytes], deliveries: Sequence[bytes]) -> None:
        self._fields = fields
        self._deliveries = deliveries
        self.unreadable: list[str] = []

    def job(self, job_id: str, queue_position: int | None) -> Job | None:
        """The job, with what could be read."""
        status = self._get("status", lambda value: JobStatus(value.decode()), None)
        created_at = self._get("created_at", _moment, None)
        if status is None or created_at is None:
            self.unreadable = self.unreadable or ["status, created_at"]
            return None
        total_steps = self._get("total_steps", lambda value: int(value) if value else None, None)
        result = self._get("outputs", _object, None)
        return Job(
            job_id=job_id,
            run_id=job_id,
            caller=self._get("caller", bytes.decode, None),
            run_name=self._get("run_name", bytes.decode, job_id),
            status=status,
            pipeline_name=self._get("pipeline_name", bytes.decode, ""),
            deployment_id=self._get("deployment_id", bytes.decode, ""),
            parameters=self._parameters(),
            labels=self._get("labels", _LABELS.validate_json, dict[str, str]()),
            created_at=created_at,
            started_at=self._get("started_at", _moment, None),
            completed_at=self._get("completed_at", _moment, None),
            run_at=self._get("run_at", _moment, None),
            attempt=self._get("attempt", int, 0),
            max_attempts=self._get("max_attempts", int, 1),
            worker=self._get("worker", bytes.decode, None),
            execution_time=self._get("execution_time", float, None),
            progress=self._get("progress", Progress.model_validate_json, Progress(total_steps=total_steps)),
            steps=self._get("steps", _STEPS.validate_json, list[StepReport]()),
            priority=self._get("priority", int, 0),
            queue_position=queue_position if status is JobStatus.PENDING else None,
            outputs=self._get("shown_outputs", _object, None) if b"shown_outputs" in self._fields else result,
            result=result,
            error=self._get("error", Problem.model_validate_json, None),
            canceled_by=self._get("canceled_by", bytes.decode, None),
            cancel_reason=self._get("cancel_reason", bytes.decode, None),
            retried_from=self._get("retried_from", bytes.decode, None),
            expires_at=self._get("expires_at", _moment, None),
            webhook=self._get("webhook", self._webhook, None),
            fenced_writes=self._get("fenced_writes", int, 0),
            last_seq=self._get("last_seq", int, 0),
            links=Links.of(job_id),
        )

    def _parameters(self) -> dict[str, Any] | None:
        if b"shown_parameters" in self._fields:
            return self._get("shown_parameters", _object, None)
        return self._get("parameters", _object, None) if self._fields.get(b"keep_parameters") == b"1" else None

    def _webhook(self, stored: bytes) -> WebhookReport:
        described = _object(stored)
        return WebhookReport.model_validate(
            described
            | {
                "status": self._get("webhook_status", bytes.decode, "active"),
                "deliveries": [WebhookDelivery.model_validate_json(delivery) for delivery in self._deliveries],
            }
        )

    def _get(self, name: str, parse: Callable[[bytes], _T], default: _D) -> _T | _D:
        value = self._fields.get(name.encode())
        if value is None:
            return default
        try:
            return parse(value)
        except _UNREADABLE:
            self.unreadable.append(name)
            return default


def _object(value: bytes) -> dict[str, Any]:
    """One JSON object. Integers keep all their digits."""
    read = from_json(value)
    if not isinstance(read, dict):
        raise ValueError("no JSON object")
    return cast(dict[str, Any], read)


def _moment(microseconds: bytes) -> datetime:
    return datetime.fromtimestamp(int(microseconds) / 1e6, UTC)
