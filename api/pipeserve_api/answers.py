"""The bodies of answers about jobs, as bytes. Outputs that are JSON already are spliced in, not encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from pydantic_core import to_json

from pipeserve.events import rfc3339
from pipeserve.jobs import Job, Links
from pipeserve.runtime.run import StepRecord
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.deployment import Deployment

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
                "cache": {"hits": 0, "misses": 0},
                "steps": steps if definition.capture.metadata else [],
            },
            "error": None,
        }
    )


def completed_job(job: Job, *, applied: Sequence[str], deployment: Deployment, definition: PipelineDefinition) -> bytes:
    """A completed job's record in the same words as a synchronous answer. Its taps are gone."""
    return success(
        job_id=job.job_id,
        run_name=job.run_name,
        # Not orjson: a model among the outputs may have written whole numbers of more than 64 bits.
        outputs=orjson.Fragment(to_json(job.outputs or {})),
        taps={},
        execution_time=job.execution_time,
        applied=applied,
        steps=[step.model_dump(mode="json") for step in job.steps],
        deployment=deployment,
        definition=definition,
    )


def step_of_run(step: StepRecord) -> dict[str, Any]:
    """One step call of a run of this process, as a job's record shows it."""
    return {
        "name": step.name,
        "status": step.status,
        "attempt": 1,
        "started_at": rfc3339(step.started_at),
        "duration": step.duration,
        "cached": step.cached,
    }


def accepted(job_id: str, *, status: str, queue_position: int | None) -> bytes:
    """A 202: where the job is, and where to go from here."""
    return orjson.dumps(
        {
            "job_id": job_id,
            "run_id": job_id,
            "status": status,
            "links": Links.of(job_id).__dict__,
            "queue_position": queue_position,
        }
    )
