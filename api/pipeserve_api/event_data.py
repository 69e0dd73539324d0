"""What each type of event tells in its ``data``, for the documents that describe the streams.

Events are encoded where they happen; a test holds what really comes against these models.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeserve.events import EventType


class _Data(BaseModel):
    model_config = ConfigDict(extra="allow")  # readers outlive writers: more may be told one day


class JobQueued(_Data):
    """A job was accepted for the workers."""

    queue_position: int | None = Field(description="From 0; null for a job that is not due yet")


class PipelineStarted(_Data):
    """An attempt began."""

    pipeline_name: str
    parameters_applied: list[str] = Field(description="The names of the parameters that the request set")


class StepStarted(_Data):
    """A step began."""


class StepCompleted(_Data):
    """A step has its result."""

    cached: bool
    duration: float | None = Field(None, description="Seconds; absent where metadata is not captured")
    cache: dict[str, Any] | None = Field(None, description="The receipt of the step cache, if the step can be cached")


class StepFailed(_Data):
    """A step failed; ``error`` says why."""

    duration: float | None = Field(None, description="Seconds; absent where metadata is not captured")


class StepRetrying(_Data):
    """A call of a step failed, and another follows."""

    call: int = Field(description="Which call failed, from 1")
    calls: int = Field(description="How many there may be")
    delay: float = Field(description="Seconds until the next")


class ProgressUpdate(_Data):
    """How far the job is. At most 20 a second."""

    current_step: int = Field(description="Steps that are done")
    total_steps: int | None = Field(description="null for a dynamic pipeline")
    percent: float | None
    current_steps: list[str] = Field(description="The names of the steps that run")


class Output(_Data):
    """A step yielded or emitted a value."""

    value: Any = Field(description="null for a value without a JSON form")
    index: int = Field(description="Its place among the step's values, from 0")
    not_json: dict[str, str] | None = Field(None, description="Members without a JSON form, and their types")


class Log(_Data):
    """A step printed or logged ``message``."""

    logger: str = Field(description="print or stderr for the standard streams; pipeserve for what the service says")
    cut: bool | None = Field(None, description="Present and true where something was cut")
    dropped: int | None = Field(None, description="Events that were dropped here, because the store was away")


class Metadata(_Data):
    """What ``log_metadata`` was given, by name."""


class Visualization(_Data):
    """A step shows something."""

    index: int = Field(description="Its place among the job's visualizations, from 1")
    name: str
    media_type: str
    size: int = Field(description="Bytes")
    href: str = Field(description="Where it is")


class AttemptLost(_Data):
    """The process that ran the job is gone, or let it go; the job goes back to the queue."""

    reason: str


class CancellationRequested(_Data):
    """Somebody cancels the job."""

    reason: str | None = None
    canceled_by: str | None = None


class PipelineCompleted(_Data):
    """The end, with the outputs."""

    execution_time: float = Field(description="Seconds")
    outputs: dict[str, Any]


class PipelineEnded(_Data):
    """The end, without outputs; ``error`` says why."""

    execution_time: float | None = Field(None, description="Seconds; absent for a job that nobody ran to its end")
    reason: str | None = Field(None, description="Why it was taken from its worker, if it was")


EVENT_DATA: dict[EventType, type[BaseModel]] = {
    EventType.JOB_QUEUED: JobQueued,
    EventType.PIPELINE_STARTED: PipelineStarted,
    EventType.STEP_STARTED: StepStarted,
    EventType.STEP_COMPLETED: StepCompleted,
    EventType.STEP_FAILED: StepFailed,
    EventType.STEP_RETRYING: StepRetrying,
    EventType.PROGRESS_UPDATE: ProgressUpdate,
    EventType.OUTPUT: Output,
    EventType.LOG: Log,
    EventType.METADATA: Metadata,
    EventType.VISUALIZATION: Visualization,
    EventType.ATTEMPT_LOST: AttemptLost,
    EventType.CANCELLATION_REQUESTED: CancellationRequested,
    EventType.PIPELINE_COMPLETED: PipelineCompleted,
    EventType.PIPELINE_FAILED: PipelineEnded,
    EventType.PIPELINE_CANCELED: PipelineEnded,
    EventType.PIPELINE_TIMED_OUT: PipelineEnded,
    EventType.PIPELINE_EXPIRED: PipelineEnded,
}
