"""The wire format of a job's log: what one event says, and how it becomes bytes and back.

A job's log is numbered 1, 2, 3, … without a hole. Whoever makes an event does not know its number: the log gives
it on append. So an event travels as a *body* (JSON without ``seq``) and becomes a *numbered* event by a splice of
bytes, not by a second encoding::

    body      {"event_type":"step_started","job_id":…}
    numbered  {"seq":3,"event_type":"step_started","job_id":…}

``event_type`` is the body's first member: :func:`event_type_of` reads it without parsing the rest.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import orjson

from pipeserve.errors import Problem


class EventType(StrEnum):
    """What happened. A terminal type ends the log: exactly one, always last."""

    JOB_QUEUED = "job_queued"
    PIPELINE_STARTED = "pipeline_started"
    STEP_STARTED = "step_started"
    STEP_COMPLETED = "step_completed"
    STEP_FAILED = "step_failed"
    STEP_RETRYING = "step_retrying"
    PROGRESS_UPDATE = "progress_update"
    OUTPUT = "output"
    LOG = "log"
    METADATA = "metadata"
    VISUALIZATION = "visualization"
    ATTEMPT_LOST = "attempt_lost"
    CANCELLATION_REQUESTED = "cancellation_requested"
    PIPELINE_COMPLETED = "pipeline_completed"
    PIPELINE_FAILED = "pipeline_failed"
    PIPELINE_CANCELED = "pipeline_canceled"
    PIPELINE_TIMED_OUT = "pipeline_timed_out"
    PIPELINE_EXPIRED = "pipeline_expired"

    @property
    def terminal(self) -> bool:
        """Whether nothing can follow."""
        return self in TERMINAL_EVENTS


TERMINAL_EVENTS = frozenset(
    {
        EventType.PIPELINE_COMPLETED,
        EventType.PIPELINE_FAILED,
        EventType.PIPELINE_CANCELED,
        EventType.PIPELINE_TIMED_OUT,
        EventType.PIPELINE_EXPIRED,
    }
)
TERMINAL_NAMES = frozenset(event_type.value for event_type in TERMINAL_EVENTS)


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a job's log. ``seq`` is 0 until the log has numbered it; ``timestamp`` is Unix time in seconds."""

    event_type: EventType
    job_id: str
    attempt: int
    timestamp: float = field(default_factory=time.time)
    step_name: str | None = None
    level: str | None = None
    message: str | None = None
    data: Any = field(default_factory=dict[str, Any])
    error: Problem | None = None
    seq: int = 0


def rfc3339(timestamp: float) -> str:
    """``timestamp`` (Unix seconds) as RFC 3339 in UTC, to the microsecond: ``2026-01-31T12:00:00.123456Z``."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def clean_text(text: str) -> str:
    """``text`` without what UTF-8 can't carry: lone surrogates, as file names may hold them, become question marks."""
    return text.encode("utf-8", "replace").decode()


def encode_body(event: Event) -> bytes:
    """The event as JSON without its ``seq``. ``data`` must be JSON values (or ``orjson.Fragment``)."""
    return orjson.dumps(
        {
            "event_type": event.event_type,
            "job_id": event.job_id,
            "attempt": event.attempt,
            "timestamp": datetime.fromtimestamp(event.timestamp, UTC),
            "step_name": event.step_name,
            "level": event.level,
            "message": event.message,
            "data": event.data,
            "error": None if event.error is None else event.error.as_dict(),
        },
        option=orjson.OPT_UTC_Z,
    )


def number(seq: int, body: bytes) -> bytes:
    """``body`` as the numbered event that every transport sends."""
    return b'{"seq":%d,%b' % (seq, body[1:])


def sse_frame(seq: int, body: bytes, position: str | None = None) -> bytes:
    """``body`` as one block of Server-Sent Events. ``position``: its ``id``, where that is not just its number."""
    event_id = b"%d" % seq if position is None else position.encode()
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event_id, event_type_of(body).encode(), number(seq, body))


def event_type_of(body: bytes) -> str:
    """The type of an encoded body, read from its first member."""
    start = len(b'{"event_type":"')
    return body[start : body.index(b'"', start)].decode()


def is_terminal(body: bytes) -> bool:
    """Whether this encoded body ends its log."""
    return event_type_of(body) in TERMINAL_NAMES


def decode(numbered: bytes | str) -> Event:
    """A numbered event's JSON as an :class:`Event`. Unknown members are ignored: old readers outlive new writers."""
    raw = orjson.loads(numbered)
    return Event(
        seq=raw.get("seq", 0),
        event_type=EventType(raw["event_type"]),
        job_id=raw["job_id"],
        attempt=raw["attempt"],
        timestamp=datetime.fromisoformat(raw["timestamp"]).timestamp(),
        step_name=raw.get("step_name"),
        level=raw.get("level"),
        message=raw.get("message"),
        data=raw.get("data"),
        error=Problem.model_validate(raw["error"]) if raw.get("error") else None,
    )
