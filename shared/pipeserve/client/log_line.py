"""A line of a job's log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line that a step of a job printed or logged."""

    seq: int
    """Its event's number in the job's log."""
    timestamp: datetime
    level: str
    logger: str
    """``print`` or ``stderr`` for the standard streams; else the logger's name."""
    message: str
    step_name: str | None = None
    attempt: int = 1
    cut: bool = False
    """Whether something was cut here: the line, or the log as a whole."""
