"""The log of a run that most likely ends before anybody asks for it.

A short synchronous run tells little: that it and its steps began and ended. Such events are only noted, and encoded
once in the background, after the caller has the answer. As soon as there is more to tell, or somebody looks, or the
run lasts, a :class:`~pipeserve.runtime.recording.run_log.RunLog` takes over with all that was noted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pipeserve.events import Event, EventType
from pipeserve.jobs import Progress
from pipeserve.runtime.ports import Attachment
from pipeserve.runtime.recording.brief import Brief, Row
from pipeserve.runtime.recording.event_budget import ENTRY_BYTES
from pipeserve.runtime.recording.run_log import RunLog
from pipeserve.runtime.recording.run_view import without_metadata
from pipeserve.sdk.capture import Capture

_NOTED = frozenset({EventType.PIPELINE_STARTED, EventType.STEP_STARTED, EventType.STEP_COMPLETED})
_MOST_NOTED = 128  # a run of more events than this is not short


class QuietLog:
    """An :class:`~pipeserve.runtime.run.EventSink`. Thread-safe."""

    def __init__(self, make_log: Callable[[], RunLog]) -> None:
        self._make_log = make_log
        self._lock = threading.Lock()
        self._noted: list[Event] = []
        self._terminal: Event | None = None
        self._log: RunLog | None = None

    @property
    def quiet(self) -> bool:
        """Whether there is no more than what was noted."""
        return self._log is None

    @property
    def log(self) -> RunLog:
        """The whole log; from now on it is kept as it grows."""
        with self._lock:
            if self._log is None:
                self._log = log = self._make_log()
                for event in self._noted:
                    log.send(event)
                if self._terminal is not None:
                    log.close(self._terminal)
                self._noted = []
            return self._log

    def send(self, event: Event) -> None:
        """Take one event, from any thread."""
        if self._log is None and event.event_type in _NOTED:
            with self._lock:
                if self._log is None and len(self._noted) < _MOST_NOTED:
                    self._noted.append(event)
                    return
        self.log.send(event)

    def attach(self, attachment: Attachment) -> None:
        """Take what an event, which comes next, tells of; from any thread."""
        self.log.attach(attachment)

    def close(self, terminal: Event) -> None:
        """The run has ended. What an abandoned thread still reports is dropped."""
        with self._lock:
            if self._log is None:
                self._terminal = terminal
                return
        self._log.close(terminal)

    def release(self) -> None:
        """Nobody is going to write this log any more."""
        if self._log is not None:
            self._log.release()

    @property
    def held(self) -> int:
        """About how many bytes of memory it takes."""
        return len(self._noted) * ENTRY_BYTES if self._log is None else self._log.held

    def brief(self, capture: Capture, total_steps: int | None) -> tuple[Brief, Event, Progress] | None:
        """Of a completed run that stayed quiet: its events before the terminal one, that one, and its progress.

        None: there is more, or the run did not complete; the log has it.
        """
        with self._lock:
            noted, terminal = self._noted, self._terminal
            if self._log is not None or terminal is None or terminal.event_type is not EventType.PIPELINE_COMPLETED:
                return None
        rows: list[Row] = [(event.event_type, event.timestamp, event.step_name, event.data) for event in noted]
        if not capture.metadata:
            rows = [(kind, timestamp, step, without_metadata(data)) for kind, timestamp, step, data in rows]
        completed = sum([event.event_type is EventType.STEP_COMPLETED for event in noted])
        total = completed if total_steps is None else total_steps
        if completed:
            data: dict[str, Any] = {
                "current_step": completed,
                "total_steps": total,
                "percent": 100.0,
                "current_steps": [],
            }
            rows.append((EventType.PROGRESS_UPDATE, terminal.timestamp, None, data))
        progress = Progress.model_construct(
            completed_steps=completed, total_steps=total, percent=100.0, current_steps=[], message=None
        )
        return Brief(terminal.job_id, rows), terminal, progress
