"""What goes into a run and what comes out of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pydantic_core import from_json

from pipeserve.errors import Problem
from pipeserve.events import Event
from pipeserve.jobs import JobStatus
from pipeserve.sdk.schema import BoundParameters

if TYPE_CHECKING:
    from pipeserve.runtime.checkpoints import JobCheckpoints
    from pipeserve.runtime.ports import Attachment
    from pipeserve.runtime.values.outputs import KeptOutputs


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
    cache_read: bool = True
    """Whether steps may use cached results."""
    cache_write: bool = True
    """Whether results of steps may be kept for others."""
    checkpoints: JobCheckpoints | None = None
    """Results of durable steps that earlier attempts recorded, and where to record more. None: they aren't."""
    answered: bool = True
    """Whether a caller waits for the outputs, all of them as JSON."""
    kept: bool = False
    """Whether the outputs go into a job's record: then large ones are made artifacts."""


@dataclass(slots=True)
class StepRecord:
    """One step call of a run. Times are Unix seconds, ``duration`` is in seconds."""

    name: str
    started_at: float
    status: str = "running"
    duration: float | None = None
    cached: bool = False
    calls: int = 1
    """How often it was called: more than once after a retry."""
    cache: dict[str, Any] | None = None
    """Members of a :class:`~pipeserve.jobs.CacheReceipt`, if the call can be cached."""
    batch: int | None = None
    """How many calls were gathered into one, with this."""
    resumed: bool = False
    """Whether an earlier attempt's checkpoint was used."""
    step: str = ""
    """The name of the step's definition, where the record is the run's own."""
    timer: asyncio.TimerHandle | None = field(default=None, repr=False, compare=False)
    """Of the step's own timeout, while it runs."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended. Nothing here is shared with another run."""

    status: JobStatus
    """completed, failed, canceled or timed_out."""
    execution_time: float
    outputs_json: bytes | None = None
    """One JSON object, output name to value; None unless completed. If nobody waits for it, as :attr:`kept`."""
    kept: KeptOutputs | None = None
    """What goes into the job's record instead, if anything is large or masked."""
    taps_json: bytes = b"{}"
    error: Problem | None = None
    steps: list[StepRecord] = field(default_factory=list[StepRecord])
    applied: tuple[str, ...] = ()
    """The names of the parameters that the request set."""

    @property
    def outputs(self) -> dict[str, Any] | None:
        """The outputs as JSON values, by name; None unless completed."""
        return None if self.outputs_json is None else from_json(self.outputs_json)

    @property
    def kept_json(self) -> bytes | None:
        """The outputs as the job's record has them; None unless completed."""
        return self.outputs_json if self.kept is None else self.kept.json

    @property
    def shown_json(self) -> bytes | None:
        """The outputs as the record's view and the job's events show them, if that is not as it has them."""
        return None if self.kept is None else self.kept.shown


class EventSink(Protocol):
    """Takes what a run reports."""

    def send(self, event: Event) -> None:
        """Take one event, from any thread. Must not block and must not raise."""
        ...

    def attach(self, attachment: Attachment) -> None:
        """Take what an event, which comes after it, tells of; likewise."""
        ...


class RunStopped(BaseException):
    """Raised at a checkpoint of a run that was cancelled, timed out, or failed in another branch."""
