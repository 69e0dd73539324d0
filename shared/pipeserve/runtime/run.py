"""What goes into a run and what comes out of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic_core import from_json

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
    timer: asyncio.TimerHandle | None = field(default=None, repr=False, compare=False)
    """Of the step's own timeout, while it runs."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended. Nothing here is shared with another run."""

    status: JobStatus
    """completed, failed, canceled or timed_out."""
    execution_time: float
    outputs_json: bytes | None = None
    """One JSON object, output name to value; None unless completed."""
    taps_json: bytes = b"{}"
    error: Problem | None = None
    steps: list[StepRecord] = field(default_factory=list[StepRecord])
    applied: tuple[str, ...] = ()
    """The names of the parameters that the request set."""

    @property
    def outputs(self) -> dict[str, Any] | None:
        """The outputs as JSON values, by name; None unless completed."""
        return None if self.outputs_json is None else from_json(self.outputs_json)


class EventSink(Protocol):
    """Takes what a run reports."""

    def send(self, event: Event) -> None:
        """Take one event, from any thread. Must not block and must not raise."""
        ...


class RunStopped(BaseException):
    """Raised at a checkpoint of a run that was cancelled, timed out, or failed in another branch."""
