"""How far a run is, from what it reports."""

from __future__ import annotations

from typing import Any

from pipeserve.events import Event, EventType
from pipeserve.jobs import Progress

_INTERVAL = 0.05  # seconds between two progress_update events: at most 20 a second


class ProgressTracker:
    """Follows one run's steps, and says when a ``progress_update`` is due. Not thread-safe."""

    def __init__(self, total_steps: int | None) -> None:
        self._total = total_steps
        self._completed = 0
        self._fractions: dict[str | None, float] = {}
        self._message: str | None = None
        self._dirty = False
        self._last_sent = 0.0

    def note(self, event: Event) -> None:
        """Take one event into account."""
        if event.event_type is EventType.STEP_STARTED:
            self._fractions[event.step_name] = 0.0
        elif event.event_type is EventType.STEP_COMPLETED:
            self._fractions.pop(event.step_name, None)
            self._completed += 1
            self._dirty = True
        elif event.event_type is EventType.STEP_FAILED:
            self._fractions.pop(event.step_name, None)
        elif event.event_type is EventType.PROGRESS_UPDATE:
            self._fractions[event.step_name] = event.data["fraction"]
            if event.message is not None:
                self._message = event.message
            self._dirty = True

    def update(self, job_id: str, attempt: int, now: float, *, force: bool = False) -> Event | None:
        """The ``progress_update`` that is due at ``now`` (Unix seconds), if any. ``force``: due if anything changed."""
        if not self._dirty or (not force and now - self._last_sent < _INTERVAL):
            return None
        self._dirty = False
        self._last_sent = now
        progress = self.progress()
        data: dict[str, Any] = {
            "current_step": self._completed,
            "total_steps": self._total,
            "percent": progress.percent,
            "current_steps": progress.current_steps,
        }
        return Event(EventType.PROGRESS_UPDATE, job_id, attempt, now, message=self._message, data=data)

    def progress(self, *, ended: bool = False) -> Progress:
        """The job's progress as it is now; ``ended``: all steps have run."""
        known = self._completed + sum(self._fractions.values())
        if ended:
            percent = 100.0
        elif self._total:
            percent = round(min(100.0, 100.0 * known / self._total), 1)
        else:  # a dynamic pipeline: only its own word counts
            percent = round(100.0 * self._fractions.get(None, 0.0), 1)
        return Progress(
            completed_steps=self._completed,
            total_steps=self._total if self._total is not None or not ended else self._completed,
            percent=percent,
            current_steps=[] if ended else [name for name in self._fractions if name is not None],
            message=self._message,
        )
