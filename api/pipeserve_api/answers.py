"""The bodies of answers about jobs, as bytes. Outputs that are JSON already are spliced in, not encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from pydantic_core import to_json

from pipeserve.jobs import Job, Links, StepReport
from pipeserve.runtime.recording.run_view import step_fields
from pipeserve.runtime.run import StepRecord
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.deployment import Deployment
from pipeserve_api.cache_status import CachedCall, cache_figures

_POLICIES = {"calls", "cache", "batch", "resumed"}  # of a StepReport

RETRY_AFTER = {"retry-after": "1"}
"""Seconds after which a pending job is worth another look."""


def success(
    *,
    job_id: str,
    run_name: str,
    outputs: Any,
    taps: Any,
    execution_time: float | None,
    applied: Sequence[str],
    steps: Sequence[Any],
    cached_calls: Sequence[CachedCall],
    deployment: Deployment,
    definition: PipelineDefinition,
) -> bytes:
    """A completed call. ``outputs`` and ``taps``: JSON values, or ``orjson.Fragment`` of one JSON object each."""
    return orjson.dumps(
        {
            "success": True,
            "job_id": job_id,
            "run_id": job_id,
            "status": "completed",
            "outputs": outputs,
            "taps": taps,
            "execution_time": execution_time,
            "metadata": {
                "pipeline_name": definition.name,
                "deployment_id": deployment.id,
                "run_name": run_name,
                "parameters_applied": applied,
                "cache": cache_figures(cached_calls),
                "steps": steps if definition.capture.metadata else [],
            },
            "error": None,
        },
        option=orjson.OPT_UTC_Z,
    )


def completed_job(
    job: Job,
    *,
    applied: Sequence[str],
    cached_calls: Sequence[CachedCall],
    deployment: Deployment,
    definition: PipelineDefinition,
) -> bytes:
    """A completed job's record in the same words as a synchronous answer. Its taps are gone."""
    return success(
        job_id=job.job_id,
        run_name=job.run_name,
        # Not orjson: a model among the outputs may have written whole numbers of more than 64 bits.
        outputs=orjson.Fragment(to_json((job.outputs if job.result is None else job.result) or {})),
        taps={},
        execution_time=job.execution_time,
        applied=applied,
        steps=[_step_of_job(step) for step in job.steps],
        cached_calls=cached_calls,
        deployment=deployment,
        definition=definition,
    )


def step_of_run(step: StepRecord) -> dict[str, Any]:
    """One step call of a run of this process, as a job's record shows it."""
    return step_fields(step, 1)


def _step_of_job(step: StepReport) -> dict[str, Any]:
    """The same members of a record's step call: what its policies did only where they did something."""
    always = step.model_dump(mode="json", exclude=_POLICIES)
    return always | step.model_dump(mode="json", include=_POLICIES, exclude_defaults=True)


def accepted(job_id: str, *, status: str, queue_position: int | None) -> bytes:
    """A 202: where the job is, and where to go from here."""
    return orjson.dumps(accepted_members(job_id, status=status, queue_position=queue_position))


def accepted_members(job_id: str, *, status: str, queue_position: int | None) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "job_id": job_id,
        "run_id": job_id,
        "status": status,
        "links": Links.of(job_id).__dict__,
        "queue_position": queue_position,
    }


def location(job_id: str) -> dict[str, str]:
    """The header that says where the job is."""
    return {"location": f"/jobs/{job_id}"}
