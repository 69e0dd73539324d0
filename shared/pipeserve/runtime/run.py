"""What goes into a run and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeserve.errors import Problem
from pipeserve.events import Event
from pipeserve.jobs import JobStatus
from pipeserve.sdk.schema import BoundParameters


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One attempt at one job."""

    job_id: str
    attempt: int
    parameters: BoundParameters
    run_name: str
    timeout: float | None = None
    """Seconds; None: no bound."""
    taps: tuple[str, ...] = ()
    """Intermediate outputs to return, as ``step.output``."""


@dataclass(slots=True)
class StepRecord:
    """One step call of a run. Times are Unix seconds, ``duration`` is in seconds."""

    name: str
    started_at: float
    status: str = "running"
    duration: float | None = None
    cached: bool = False


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended. Nothing here is shared with another run."""

    status: JobStatus
    """completed, failed, canceled or timed_out."""
    execution_time: float
    outputs: dict[str, Any] | None = None
    outputs_json: bytes | None = None
    """``outputs`` as one JSON object."""
    taps_json: bytes = b"{}"
    error: Problem | None = None
    steps: list[StepRecord] = field(default_factory=list[StepRecord])
    applied: tuple[str, ...] = ()
    """The names of the parameters that the request set."""


class EventSink(Protocol):
    """Takes what a run reports."""

    def send(self, event: Event) -> None:
        """Take one event, from any thread. Must not block and must not raise."""
        ...


class RunStopped(BaseException):
    """Raised at a checkpoint of a run that was cancelled, timed out, or failed in another branch."""
