"""From the memory twin's record to the :class:`Job` that everybody reads."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, cast

from pydantic import TypeAdapter
from pydantic_core import from_json

from pipeserve.jobs import Job, Links, Progress, StepReport, WebhookReport
from pipeserve.runtime.memory.record import Record

logger = logging.getLogger(__name__)

_STEPS = TypeAdapter(list[StepReport])


def job_of(record: Record, queue_position: int | None, *, deliveries: bool) -> Job:
    """The job as it is now. ``deliveries``: with the tries of its webhook."""
    new = record.new
    result = _object(record, "outputs", record.outputs)
    return Job(
        job_id=record.job_id,
        run_id=record.job_id,
        run_name=new.run_name,
        status=record.status,
        pipeline_name=new.pipeline_name,
        deployment_id=new.deployment_id,
        parameters=_parameters(record),
        caller=new.caller or None,
        labels=dict(new.labels),
        created_at=datetime.fromtimestamp(record.created_at, UTC),
        started_at=_moment(record.started_at),
        completed_at=_moment(record.completed_at),
        run_at=_moment(new.run_at),
        attempt=record.attempt,
        max_attempts=new.max_attempts,
        worker=record.worker,
        execution_time=record.execution_time,
        progress=(
            Progress(total_steps=new.total_steps)
            if record.progress is None
            else Progress.model_validate_json(record.progress)
        ),
        steps=[] if record.steps is None else _STEPS.validate_json(record.steps),
        priority=new.priority,
        queue_position=queue_position,
        outputs=(result if record.shown_outputs is None else _object(record, "shown_outputs", record.shown_outputs)),
        result=result,
        error=record.error,
        canceled_by=record.canceled_by,
        cancel_reason=record.cancel_reason,
        retried_from=new.retried_from,
        expires_at=_moment(record.start_by),
        webhook=_webhook(record, deliveries=deliveries),
        fenced_writes=record.fenced_writes,
        last_seq=record.last_seq,
        links=Links.of(record.job_id),
    )


def _parameters(record: Record) -> dict[str, Any] | None:
    if record.shown_parameters is not None:
        return _object(record, "shown_parameters", record.shown_parameters)
    return _object(record, "parameters", record.parameters) if record.keeps_parameters else None


def _webhook(record: Record, *, deliveries: bool) -> WebhookReport | None:
    outgoing = record.outgoing
    if outgoing is None:
        return None
    return WebhookReport(
        url=outgoing.webhook.url,
        events=list(outgoing.webhook.events),
        status=outgoing.status,
        deliveries=list(outgoing.deliveries) if deliveries else [],
    )


def _object(record: Record, name: str, value: bytes | None) -> dict[str, Any] | None:
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


def _moment(timestamp: float | None) -> datetime | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)
