"""Which events a webhook may ask for, and which it gets if it does not say."""

from __future__ import annotations

from pipeserve.events import EventType

EVENT_TYPES: tuple[str, ...] = tuple(kind.value for kind in EventType)
"""All that can be sent, in the order of a job's life."""

DEFAULT_EVENTS: tuple[str, ...] = tuple(kind.value for kind in EventType if kind.terminal)
"""The job's end, whichever it is."""
