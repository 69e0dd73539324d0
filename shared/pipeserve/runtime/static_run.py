"""The run of a static pipeline: walks the plan, independent branches in parallel.

Work goes on where it is: a thread that completes a step continues with a sync step that became ready, a task with an
async one; only the others change place. So a chain of sync steps costs one thread hop, whatever its length.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from pipeserve.runtime.executor import Run
from pipeserve.runtime.plan import Plan, PlannedStep
from pipeserve.runtime.run import EventSink, RunRequest
from pipeserve.runtime.step_calls import Engine
from pipeserve.sdk.definition import PipelineDefinition


class StaticRun(Run):
    """One run of a :class:`~pipeserve.runtime.plan.Plan`."""

    def __init__(
        self, engine: Engine, definition: PipelineDefinition, plan: Plan, request: RunRequest, sink: EventSink | None
    ) -> None:
        super().__init__(engine, request, sink)
        self._definition = definition
        self._plan = plan
        self._parameters = request.parameters.values
        self._overrides = request.parameters.overrides
        self._results: dict[str, Any] = {}
        self._waits_for = [planned.waits_for for planned in plan.steps]

    def _begin(self) -> None:
        self.add_units(len(self._plan.roots))  # none at all: the run has ended
        for index in self._plan.roots:
            self._dispatch(index)

    def _dispatch(self, index: int) -> None:
        planned = self._plan.steps[index]
        if planned.mode.is_async:
            self.spawn_task(lambda: self._task_unit(planned))
        else:
            self.spawn_thread(lambda: self._thread_unit(planned))

    def _thread_unit(self, planned: PlannedStep) -> None:
        step: PlannedStep | None = planned
        while step is not None:
            call = partial(step.call, self._parameters, self._results, self._overrides)
            try:
                value = self.run_sync(step.name, step.mode, step.timeout, call)
            except BaseException as error:  # a step may raise anything, SystemExit included: it fails the run
                self.fail(error, step.name)
                return
            step = self._advance(step, value, here_async=False)

    async def _task_unit(self, planned: PlannedStep) -> None:
        step: PlannedStep | None = planned
        while step is not None:
            call = partial(step.call, self._parameters, self._results, self._overrides)
            try:
                value = await self.run_async(step.name, step.mode, step.timeout, call)
            except BaseException as error:  # a step may raise anything: it fails the run
                self.fail(error, step.name)
                return
            step = self._advance(step, value, here_async=True)

    def _advance(self, planned: PlannedStep, value: Any, *, here_async: bool) -> PlannedStep | None:
        """Note a result and start what became ready elsewhere. Returns the step with which this unit goes on."""
        ready: list[int] = []
        with self._lock:
            self._results[planned.name] = value
            for index in planned.downstream:
                self._waits_for[index] -= 1
                if self._waits_for[index] == 0:
                    ready.append(index)
        steps = self._plan.steps
        here = next((index for index in ready if steps[index].mode.is_async is here_async), None)
        elsewhere = [index for index in ready if index != here]
        if elsewhere:
            self.add_units(len(elsewhere))
        for index in elsewhere:
            self._dispatch(index)
        return None if here is None else steps[here]

    def _outputs(self) -> Iterable[tuple[str, str | None, Any]]:
        for output in self._plan.outputs:
            yield output.name, output.step_name, output.value(self._parameters, self._results)

    def _tap(self, tap: str) -> tuple[str | None, Any]:
        name, index = tap_place(self._definition, tap)
        value = self._results[name]
        return name, value if index is None else value[index]

    def _forget(self) -> None:
        self._results = {}


def tap_place(definition: PipelineDefinition, tap: str) -> tuple[str, int | None]:
    """The node of a tap, and which of its outputs (None: its only one). Raises KeyError for an unknown tap."""
    name, _, output = tap.rpartition(".")
    for node in definition.nodes:
        if node.name == name:
            names = [declared.name for declared in node.step.outputs]
            if output in names:
                return name, names.index(output) if len(names) > 1 else None
    raise KeyError(tap)
