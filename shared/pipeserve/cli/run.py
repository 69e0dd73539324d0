"""``pipeserve run``: a pipeline in this process, with the runtime that a service has, and no service."""

from __future__ import annotations

import asyncio
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic_core import from_json

from pipeserve.cli.options import Parameters, Target, Timeout, parse_parameters
from pipeserve.cli.output import EventTeller, write_json
from pipeserve.errors import error_from_problem

if TYPE_CHECKING:
    from pipeserve.sdk.definition import PipelineDefinition


def run(
    target: Target,
    params: Parameters = None,
    timeout: Timeout = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Don't show the progress.")] = False,
) -> None:
    """Run TARGET here, without a service. Prints its outputs as JSON; its progress goes to stderr."""
    parameters = parse_parameters(params)
    from pipeserve.sdk.target import load_target

    # Whatever the author's code prints must not end up in the JSON.
    with redirect_stdout(sys.stderr):
        definition = load_target(target).pipeline.definition
        outputs = asyncio.run(_run(definition, parameters, timeout, quiet=quiet))
    write_json(from_json(outputs))


async def _run(
    definition: PipelineDefinition, parameters: dict[str, Any], timeout: float | None, *, quiet: bool
) -> bytes:
    from pipeserve.jobs import new_job_id
    from pipeserve.runtime.realtime import RealtimeRuntime
    from pipeserve.runtime.run import RunRequest
    from pipeserve.settings import RuntimeSettings

    bound = definition.parameters.validate(parameters)
    async with RealtimeRuntime(definition, RuntimeSettings.from_environment()) as runtime:
        request = RunRequest(new_job_id(), 1, bound, run_name=definition.name, timeout=timeout)
        result = await runtime.start(request, None if quiet else EventTeller()).wait()
    if result.error is not None:
        raise error_from_problem(result.error)
    return result.outputs_json or b"{}"
