"""The tools that stand for one deployed pipeline: the call itself and, if wanted, three for jobs that take long."""

from __future__ import annotations

from typing import Any

from mcp_types import Tool, ToolAnnotations

from pipeserve.mcp.deployed import DeployedPipeline
from pipeserve.mcp.schemas import input_schema, output_schema

SUBMIT, STATUS, CANCEL = "_submit", "_status", "_cancel"
"""Endings of the names of the tools for jobs."""
_JOB_ID = {"type": "object", "properties": {"job_id": {"type": "string"}}, "required": ["job_id"]}


def tools_of(pipeline: DeployedPipeline, *, jobs: bool) -> list[Tool]:
    """Every tool. ``jobs``: also those that submit, look at and cancel a job."""
    call = Tool(
        name=pipeline.tool_name,
        title=pipeline.name,
        description=_description(pipeline),
        input_schema=input_schema(pipeline.input_schema),
        output_schema=output_schema(pipeline.output_schema),
    )
    return [call, *_job_tools(pipeline)] if jobs else [call]


def _job_tools(pipeline: DeployedPipeline) -> list[Tool]:
    name = pipeline.tool_name
    return [
        Tool(
            name=name + SUBMIT,
            description=f"Start {name} as a job and return its job_id at once, without waiting for the result. "
            f"{name}{STATUS} tells how far it is.\n\n{_description(pipeline)}",
            input_schema=input_schema(pipeline.input_schema),
            output_schema=_JOB_ID,
        ),
        Tool(
            name=name + STATUS,
            description=f"How far a job of {name} is, and its outputs or its error once it has ended.",
            input_schema=_with_job_id(),
            annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
        ),
        Tool(
            name=name + CANCEL,
            description=f"Cancel a job of {name} that waits or runs.",
            input_schema=_with_job_id(),
            annotations=ToolAnnotations(
                read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
            ),
        ),
    ]


def _description(pipeline: DeployedPipeline) -> str:
    return pipeline.description or f"Runs the pipeline {pipeline.name}."


def _with_job_id() -> dict[str, Any]:
    job_id = {"type": "string", "description": "The job's id, as it was returned when the job was started."}
    return {"type": "object", "properties": {"job_id": job_id}, "required": ["job_id"], "additionalProperties": False}
