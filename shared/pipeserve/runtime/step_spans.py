"""What a trace says of the steps of a run, and of the run.

Names, counts and kinds of errors; never a value, a parameter or an error's own words, which may hold them.
"""

from __future__ import annotations

from typing import Any, Protocol

from pipeserve.jobs import JobStatus
from pipeserve.runtime.failures import cause_of
from pipeserve.runtime.run import RunResult, StepRecord
from pipeserve.runtime.tracing import Attribute, Span, Tracing


class _OfJob(Protocol):
    @property
    def job_id(self) -> str: ...
    @property
    def attempt(self) -> int: ...


def step_span(tracing: Tracing, record: StepRecord, of: _OfJob) -> Span:
    """The span of a step call that begins now."""
    return tracing.start(
        f"step {record.name}",
        "internal",
        {"pipeserve.job_id": of.job_id, "pipeserve.attempt": of.attempt, "pipeserve.step.name": record.name},
    )


def end_step_span(span: Span, record: StepRecord, error: BaseException | None) -> None:
    """It has ended, with ``error`` or without."""
    attributes: dict[str, Attribute] = {
        "pipeserve.step.status": record.status,
        "pipeserve.step.cached": record.cached,
        "pipeserve.step.calls": record.calls,
    }
    if record.batch is not None:
        attributes["pipeserve.step.batch"] = record.batch
    if record.resumed:
        attributes["pipeserve.step.resumed"] = True
    kind = None
    if error is not None and record.status == "failed":
        kind = _kind_of(cause_of(error))
    elif record.status == "timed_out":
        kind = "timed_out"
    span.end(attributes, error=kind)


def end_run_span(span: Span, result: RunResult) -> None:
    """The run has ended."""
    error = None
    if result.error is not None and result.status is not JobStatus.CANCELED:
        error = result.error.code
    span.end({"pipeserve.status": result.status.value}, error=error)


def run_attributes(job_id: str, attempt: int, pipeline_name: str, deployment_id: str) -> dict[str, Any]:
    """What the span of a run says from its start."""
    return {
        "pipeserve.job_id": job_id,
        "pipeserve.attempt": attempt,
        "pipeserve.pipeline": pipeline_name,
        "pipeserve.deployment_id": deployment_id,
    }


def _kind_of(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
