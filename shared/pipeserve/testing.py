"""For authors' tests: run a pipeline as the service would, and look at all that it reported.

::

    from pipeserve.testing import run_pipeline

    def test_summary_has_three_sentences():
        run = run_pipeline(quickstart, text="…", sentences=3)
        assert len(run.outputs["summary"]) == 3
        assert run.events[-1].event_type == "pipeline_completed"
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipeserve.errors import Problem, error_from_problem
from pipeserve.events import Event, decode, number
from pipeserve.jobs import JobStatus, new_job_id
from pipeserve.runtime.ports import LogEntry
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.runtime.recording.run_log import RunLog
from pipeserve.runtime.recording.run_view import terminal_event
from pipeserve.runtime.run import RunRequest
from pipeserve.sdk.pipeline import Pipeline
from pipeserve.settings import RuntimeSettings


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a run did, as a caller of the service would see it."""

    __test__ = False  # its name starts with "Test", but pytest has nothing to collect here

    job_id: str
    status: JobStatus
    outputs: dict[str, Any]
    """JSON values by output name; empty unless completed."""
    taps: dict[str, Any]
    error: Problem | None
    events: list[Event]
    """The whole log, numbered from 1; the terminal event is the last."""
    execution_time: float

    def raise_for_status(self) -> TestRun:
        """This run if it completed; otherwise raises its error."""
        if self.error is not None:
            raise error_from_problem(self.error)
        return self


def run_pipeline(
    pipeline: Pipeline[..., Any],
    parameters: Mapping[str, Any] | None = None,
    /,
    *,
    timeout: float | None = 60.0,
    taps: Sequence[str] = (),
    **more: Any,
) -> TestRun:
    """Run ``pipeline`` once on a Realtime runtime of its own, with parameters as JSON values, as a request sends them.

    ``parameters`` takes keys that are no Python names (``step.parameter``). ``timeout`` is in seconds. Raises
    InvalidParametersError for what a request would be refused for; what the pipeline does is in the result.
    """
    return asyncio.run(run_pipeline_async(pipeline, {**(parameters or {}), **more}, timeout=timeout, taps=taps))


async def run_pipeline_async(
    pipeline: Pipeline[..., Any],
    parameters: Mapping[str, Any] | None = None,
    /,
    *,
    timeout: float | None = 60.0,
    taps: Sequence[str] = (),
) -> TestRun:
    """The same from async code."""
    definition = pipeline.definition
    bound = definition.parameters.validate(parameters or {})
    async with RealtimeRuntime(definition, RuntimeSettings.from_environment()) as runtime:
        runtime.check_taps(taps)
        job_id = new_job_id()
        log = RunLog(job_id, 1, definition.capture, definition.total_steps, recorded=True)  # nothing is trimmed
        run = runtime.start(RunRequest(job_id, 1, bound, job_id, timeout, tuple(taps)), log)
        result = await run.wait()
        log.close(terminal_event(job_id, 1, result))
    return TestRun(
        job_id=job_id,
        status=result.status,
        outputs=orjson.loads(result.outputs_json) if result.outputs_json else {},
        taps=orjson.loads(result.taps_json),
        error=result.error,
        events=[decode(number(entry.seq, entry.body)) for entry in log.read() if isinstance(entry, LogEntry)],
        execution_time=result.execution_time,
    )
