"""What an ended run adds to the service's histograms: how long it took, and each step of it that really ran."""

from __future__ import annotations

from pipeserve.jobs import JobStatus
from pipeserve.runtime.run import RunResult
from pipeserve.sdk.definition import PipelineDefinition

RUN = "run"
"""The kind of completed runs' execution times."""
STEP = "step/"
"""Before the name of a step: the kind of its calls' durations."""


class RunTimes:
    """Reads the times of one pipeline's runs, in seconds by kind.

    A step's kind has the name of its definition, and only steps that the pipeline's code names have one. So there are
    as many kinds as the code has steps, whatever names a run gives to its calls.
    """

    def __init__(self, definition: PipelineDefinition) -> None:
        self._kinds = {step.name: STEP + step.name for step in definition.steps}

    def of(self, result: RunResult) -> dict[str, list[float]]:
        """``step``: of every call. ``step/<name>``: of the completed calls that took no recorded or cached result.
        ``run``: of the run, if it completed."""
        calls: list[float] = []
        times = {"step": calls}
        if result.status is JobStatus.COMPLETED:
            times[RUN] = [result.execution_time]
        for record in result.steps:
            if record.duration is None:
                continue
            calls.append(record.duration)
            if record.cached or record.resumed or record.status != "completed":
                continue
            if (kind := self._kinds.get(record.step)) is not None:
                times.setdefault(kind, []).append(record.duration)
        return times
