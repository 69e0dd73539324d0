"""What of a run stands in its job's record and in its log: steps, progress and events, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson

from pipeserve.errors import Problem
from pipeserve.events import Event, EventType, encode_body
from pipeserve.jobs import TERMINAL_EVENT_OF, CacheReceipt, JobStatus, Progress, StepReport
from pipeserve.runtime.ports import RunView
from pipeserve.runtime.run import RunResult, StepRecord
from pipeserve.sdk.capture import Capture

STEPS_SHOWN = 1000
"""Steps that a job's record lists."""
_METADATA = ("duration", "cache")  # of a step's end: not told where metadata is not captured


def step_fields(record: StepRecord, attempt: int) -> dict[str, Any]:
    """A step's record as members of a :class:`~pipeserve.jobs.StepReport`: what policies did only where they did."""
    fields: dict[str, Any] = {
        "name": record.name,
        "status": record.status,
        "attempt": attempt,
        "started_at": datetime.fromtimestamp(record.started_at, UTC),
        "duration": record.duration,
        "cached": record.cached,
    }
    if record.calls > 1:
        fields["calls"] = record.calls
    if record.cache is not None:
        fields["cache"] = record.cache
    if record.batch is not None:
        fields["batch"] = record.batch
    if record.resumed:
        fields["resumed"] = True
    return fields


def step_report(record: StepRecord, attempt: int) -> StepReport:
    """A step's record as the wire shows it."""
    fields = step_fields(record, attempt)
    if record.cache is not None:
        fields["cache"] = CacheReceipt.model_construct(**record.cache)
    return StepReport.model_construct(**fields)


def steps_json(records: Sequence[StepRecord], attempt: int) -> bytes:
    """The newest steps as JSON. A dynamic run may make very many: all are in the log, and these in the record."""
    return orjson.dumps([step_fields(record, attempt) for record in records[-STEPS_SHOWN:]], option=orjson.OPT_UTC_Z)


def without_metadata(data: dict[str, Any]) -> dict[str, Any]:
    """A step event's data without what only ``Capture(metadata=True)`` tells."""
    return {key: value for key, value in data.items() if key not in _METADATA}


def progress_json(progress: Progress) -> bytes:
    """As a job's record has it. By hand: it is written for every run, and has no field that needs pydantic."""
    return orjson.dumps(progress.__dict__)


def final_view(result: RunResult, progress: Progress, attempt: int, capture: Capture) -> RunView:
    """The view of a run that has ended: its steps as the run itself counted them."""
    return RunView(
        progress=progress_json(progress),
        steps=steps_json(result.steps, attempt) if capture.metadata else None,
    )


def event_body(capture: Capture, event: Event) -> bytes:
    """The encoded event, without what is not captured."""
    if not capture.metadata and event.event_type in (EventType.STEP_COMPLETED, EventType.STEP_FAILED):
        event = replace(event, data=without_metadata(event.data))
    # A copy: orjson's own bytes keep their whole buffer, which is 4 KiB for 300 bytes.
    return bytes(memoryview(encode_body(event)))


def terminal_event(job_id: str, attempt: int, result: RunResult) -> Event:
    """The one event that ends the log of a run with this result."""
    data: dict[str, Any] = {"execution_time": result.execution_time}
    if result.status is JobStatus.COMPLETED:
        data["outputs"] = orjson.Fragment(result.shown_json or result.kept_json or b"{}")
    error: Problem | None = result.error
    return Event(
        TERMINAL_EVENT_OF[result.status],
        job_id,
        attempt,
        level="error" if result.status in (JobStatus.FAILED, JobStatus.TIMED_OUT) else None,
        message=None if error is None else error.detail,
        data=data,
        error=error,
    )
