"""The shapes of answers that no shared model has, for the OpenAPI document: the answers are made as bytes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from pipeserve.errors import Problem
from pipeserve.jobs import Eta, JobStatus, Links, StepReport, WebhookDelivery


class Accepted(BaseModel):
    """A job that goes on without its caller."""

    job_id: str
    run_id: str
    status: JobStatus
    links: Links
    queue_position: int | None = Field(description="From 0; null for a job that is not due or runs")


class BatchItemAccepted(Accepted):
    """An item of a batch that is a job now."""

    index: int = Field(description="Its place among the items, from 0")
    replayed: bool = Field(False, description="Present and true where the job was there already")


class BatchItemRefused(BaseModel):
    """An item of a batch that was refused."""

    index: int = Field(description="Its place among the items, from 0")
    error: Problem


class BatchAccepted(BaseModel):
    """What became of each item of a batch, in their order."""

    jobs: list[BatchItemAccepted | BatchItemRefused]


class CacheFigures(BaseModel):
    """Of the step calls of one run that can be cached, how many were spared and how many not."""

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


class ExplainedCache(BaseModel):
    """What the step cache did for one step call."""

    status: Literal["hit", "shared_hit", "joined", "miss", "bypass"]
    words: str


class ExplainedStep(BaseModel):
    """One step call of the job's newest attempt. Durations are in seconds."""

    name: str
    status: str
    started_after: float | None = Field(description="Since the attempt began")
    duration: float = Field(description="Of a running step: so far")
    share: float | None = Field(description="Of the attempt's time, 0 to 1; steps that run in parallel add up to more")
    calls: int
    cache: ExplainedCache | None
    batch: int | None
    resumed: bool
    words: str


class ExplainedTiming(BaseModel):
    """Where the time went, in seconds. Null: not known, or not yet."""

    total: float = Field(description="From the job's making to its end, or so far")
    scheduled: float = Field(description="Until it was due: a job with run_at waits for that first")
    queued: float = Field(description="From then until the first attempt began")
    earlier_attempts: float | None = Field(description="From the first attempt's start to the newest one's")
    startup: float | None = Field(description="From the attempt's start to its first step")
    running: float | None = Field(description="The newest attempt")
    steps_total: float = Field(description="Sum over its steps")
    steps_elapsed: float = Field(description="Time in which at least one step ran")
    overhead: float | None = Field(description="Time of the run in which none did")
    saved: float = Field(description="What the calls took whose cached results were used")


class ExplainedCacheFigures(CacheFigures):
    """Of the job's step calls that can be cached."""

    saved: float = Field(description="Seconds")


class ExplainedAttempts(BaseModel):
    """How often the job was started. Null: its log does not say."""

    attempt: int
    max_attempts: int
    earlier: int = Field(description="Attempts before the newest")
    lost: int | None = Field(description="Of those: their process or machine died")
    handed_back: int | None = Field(description="Of those: their worker was stopped")
    resumed_steps: int = Field(description="Steps whose result an earlier attempt had recorded")
    fenced_writes: int = Field(description="Writes that were refused, because their attempt had lost the job")


class ExplainedWait(BaseModel):
    """Why a job still waits."""

    queue_position: int | None = Field(description="From 0; null for a job that is not due")
    tenant: str | None = Field(description="The job's label of that name: tenants take turns")
    priority: int
    run_at: str | None = Field(description="RFC 3339: it is not started before")
    expires_at: str | None = Field(description="RFC 3339: it is not started after")


class ExplainedWebhook(BaseModel):
    """What became of the job's webhook."""

    status: Literal["active", "done", "failed", "disabled"]
    last: WebhookDelivery | None = Field(description="The newest try")
    words: str


class Explanation(BaseModel):
    """Where a job's time went."""

    job_id: str
    status: JobStatus
    summary: list[str] = Field(description="Sentences for people; their words may change")
    waiting: ExplainedWait | None = Field(description="Null for a job that does not wait")
    eta: Eta | None = Field(description="In how many seconds it will have ended; null where that is not known")
    timing: ExplainedTiming
    steps: list[ExplainedStep] = Field(description="Empty when the pipeline does not capture metadata")
    cache: ExplainedCacheFigures
    attempts: ExplainedAttempts
    retried_from: str | None = Field(description="The job whose input this one has, if it was made to retry that")
    webhook: ExplainedWebhook | None


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


class LogLine(BaseModel):
    """One line that a step printed or logged."""

    seq: int = Field(description="Its event's number in the job's log")
    timestamp: str
    step_name: str | None
    level: str
    logger: str = Field(description="print or stderr for the standard streams; else the logger's name")
    message: str
    attempt: int
    cut: bool = Field(description="Whether something was cut here: the line, or the log as a whole")


class LogPage(BaseModel):
    """A part of what a job's steps printed and logged."""

    logs: list[LogLine]
    next: int = Field(description="Pass this as ``after`` to go on")
    done: bool = Field(description="Whether nothing will follow")
    gaps: list[Gap] | None = Field(None, description="Present only if events were trimmed")


class Visualization(BaseModel):
    """Something that a step shows."""

    index: int
    name: str
    step_name: str | None
    media_type: str
    size: int = Field(description="Bytes")
    href: str


class VisualizationList(BaseModel):
    """All that a job shows."""

    visualizations: list[Visualization]
