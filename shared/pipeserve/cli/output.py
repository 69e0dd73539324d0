"""What the commands print: results on stdout, for programs too; all that is said along the way on stderr."""

from __future__ import annotations

import math
import sys
from typing import Any

import orjson
from pydantic_core import to_json

from pipeserve.events import Event, EventType, decode, encode_body
from pipeserve.sdk.context import current_scope

LONGEST_VALUE = 120
PROGRESS_EVERY = 0.1
"""Seconds."""
_WORDS = {
    EventType.JOB_QUEUED: "queued",
    EventType.PIPELINE_STARTED: "started",
    EventType.STEP_STARTED: "started",
    EventType.STEP_COMPLETED: "done",
    EventType.STEP_FAILED: "failed",
    EventType.STEP_RETRYING: "trying again",
    EventType.PROGRESS_UPDATE: "progress",
    EventType.OUTPUT: "output",
    EventType.ATTEMPT_LOST: "its worker was lost",
    EventType.CANCELLATION_REQUESTED: "cancellation requested",
    EventType.PIPELINE_COMPLETED: "completed",
    EventType.PIPELINE_FAILED: "failed",
    EventType.PIPELINE_CANCELED: "canceled",
    EventType.PIPELINE_TIMED_OUT: "timed out",
    EventType.PIPELINE_EXPIRED: "expired",
}


def write_json(value: Any) -> None:
    """One JSON document on stdout, for people to read as well."""
    sys.stdout.write(to_json(value, indent=2).decode() + "\n")
    sys.stdout.flush()


def tell(line: str) -> None:
    """One line on stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class EventTeller:
    """Tells a run's events on stderr, from any thread; but not the terminal one, as the outputs or the error say it."""

    def __init__(self) -> None:
        self._last_progress = -math.inf

    def send(self, event: Event) -> None:
        """Tell one event; progress at most ten times a second."""
        if event.event_type is EventType.PROGRESS_UPDATE:
            if event.timestamp - self._last_progress < PROGRESS_EVERY:
                return
            self._last_progress = event.timestamp
        if isinstance(event.data, orjson.Fragment):  # of a run in this process: only encoding opens it
            event = decode(encode_body(event))
        if not event.event_type.terminal:
            token = current_scope.set(None)  # in a step's scope, what is written here would be the step's own output
            try:
                tell(describe_event(event))
            finally:
                current_scope.reset(token)

    def attach(self, attachment: object) -> None:
        """A line can't show it; its event says that it is there."""


def describe_event(event: Event) -> str:
    """An event in a line for people."""
    who = event.step_name or "pipeline"
    data: dict[str, Any] = event.data or {}
    match event.event_type:
        case EventType.LOG:
            return f"  {who}: [{event.level or 'info'}] {event.message or ''}"
        case EventType.PROGRESS_UPDATE:
            message = f" {event.message}" if event.message else ""
            percent = data["percent"] if "percent" in data else 100 * data.get("fraction", 0.0)
            return f"  {who}: {percent:.0f} %{message}"
        case EventType.OUTPUT:
            return f"  {who}: output {_short(data.get('value'))}"
        case EventType.ATTEMPT_LOST if data.get("reason") == "drained":
            return f"  {who}: its worker was stopped; it goes on elsewhere"
        case EventType.STEP_COMPLETED if "duration" in data:
            return f"  {who}: done in {data['duration']:.3f} s{' (from the cache)' if data.get('cached') else ''}"
        case _:
            words = _WORDS.get(event.event_type, event.event_type.replace("_", " "))
            reason = f": {event.error.detail}" if event.error is not None else ""
            return f"  {who}: {words}{reason}"


def _short(value: Any) -> str:
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
