"""The tools for jobs that take longer than an agent wants to wait: start one, look at it, cancel it."""

from __future__ import annotations

from typing import Any

from mcp_types import CallToolResult, TextContent
from pydantic_core import to_json

from pipeserve.client import AsyncClient
from pipeserve.errors import InvalidParametersError, PipeserveError, error_from_problem
from pipeserve.jobs import JobStatus
from pipeserve.mcp.call import LABELS
from pipeserve.mcp.failures import describe, failed
from pipeserve.mcp.results import completed


async def submit(client: AsyncClient, arguments: dict[str, Any]) -> CallToolResult:
    """Start a job."""
    try:
        job = await client.with_options(labels=LABELS).submit(arguments)
    except PipeserveError as error:
        return failed(error)
    return _structured({"job_id": job.job_id})


async def status(client: AsyncClient, arguments: dict[str, Any]) -> CallToolResult:
    """How far a job is; its outputs or its error once it has ended."""
    try:
        job = client.job(_job_id(arguments))
        record = await job.record()
        if record.status is JobStatus.COMPLETED:
            return completed(await job.result(), None)
    except PipeserveError as error:
        return failed(error)
    facts: dict[str, Any] = {
        "job_id": record.job_id,
        "status": record.status.value,
        "progress": record.progress.model_dump(mode="json", exclude_none=True),
        "queue_position": record.queue_position,
        "expected_seconds": None if record.eta is None else record.eta.p50,
        "error": None if record.error is None else describe(error_from_problem(record.error)),
    }
    return _structured({name: fact for name, fact in facts.items() if fact is not None})


async def cancel(client: AsyncClient, arguments: dict[str, Any]) -> CallToolResult:
    """Cancel a job."""
    try:
        job = client.job(_job_id(arguments))
        state = await job.cancel("canceled by its MCP client")
    except PipeserveError as error:
        return failed(error)
    return _structured({"job_id": job.job_id, "status": state.value})


def _job_id(arguments: dict[str, Any]) -> str:
    job_id = arguments.get("job_id")
    if not isinstance(job_id, str) or not job_id:
        raise InvalidParametersError("parameter 'job_id' is missing, or no string")
    return job_id


def _structured(facts: dict[str, Any]) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=to_json(facts).decode())], structured_content=facts)
