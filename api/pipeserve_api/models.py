"""The shapes of answers that no shared model has, for the OpenAPI document: the answers are made as bytes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from pipeserve.jobs import JobStatus, Links, StepReport


class Accepted(BaseModel):
    """A job that goes on without its caller."""

    job_id: str
    run_id: str
    status: JobStatus
    links: Links
    queue_position: int | None = Field(description="From 0; null once it runs")


class CacheFigures(BaseModel):
    """How often the step cache was asked in one run."""

    hits: int
    misses: int


class InvocationMetadata(BaseModel):
    """What a call was, besides its outputs."""

    pipeline_name: str
    deployment_id: str
    run_name: str
    parameters_applied: list[str] = Field(description="The names of the parameters that the request set")
    cache: CacheFigures
    steps: list[StepReport] = Field(description="Empty when the pipeline does not capture metadata")


class InvocationResult(BaseModel):
    """A completed call."""

    success: Literal[True]
    job_id: str
    run_id: str
    status: Literal["completed"]
    outputs: dict[str, Any]
    taps: dict[str, Any]
    execution_time: float | None = Field(description="Seconds")
    metadata: InvocationMetadata
    error: None


class Canceled(BaseModel):
    """A cancel that was accepted."""

    job_id: str
    status: Literal["canceling", "canceled"]
    message: str
    cancelled: Literal[True]


class Health(BaseModel):
    """The service's health, for people."""

    status: Literal["healthy", "unhealthy"]
    deployment_id: str
    pipeline_name: str
    uptime: float = Field(description="Seconds")
    last_execution: str | None = Field(description="RFC 3339, UTC")
    problems: list[str] = Field(description="What is wrong, in sentences")


class Gap(BaseModel):
    """Events that the log no longer has."""

    from_: int = Field(alias="from")
    to: int
    reason: str


class EventPage(BaseModel):
    """A part of a job's log."""

    events: list[dict[str, Any]]
    next: int = Field(description="Pass this as ``after`` to go on")
    done: bool = Field(description="Whether nothing will follow")
    gaps: list[Gap] | None = Field(None, description="Present only if events were trimmed")
