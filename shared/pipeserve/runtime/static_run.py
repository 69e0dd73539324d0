"""The run of a static pipeline: walks the plan, independent branches in parallel.

Work goes on where it is: a thread that completes a step continues with a sync step that became ready, a task with an
async one; only the others change place. So a chain of sync steps costs one thread hop, whatever its length.

A step that reads another's yields live is a unit of its own, which begins when the other has. It never waits for one
that has yet to get a thread: whatever the size of the pool, the runs in it go on.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable
from functools import partial
from typing import Any

from pipeserve.runtime.executor import Run
from pipeserve.runtime.live_stream import LiveStream
from pipeserve.runtime.plan import Plan, PlannedStep
from pipeserve.runtime.run import EventSink, RunRequest
from pipeserve.runtime.step_calls import Engine
from pipeserve.runtime.step_spec import Call
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
        for planned in plan.streams:
            self.live[planned.name] = LiveStream(planned.name, engine.loop_thread)

    def _begin(self) -> None:
        self.add_units(len(self._plan.roots))  # none at all: the run has ended
        for index in self._plan.roots:
            self._dispatch(index)

    def _cancel_tasks(self) -> None:
        super()._cancel_tasks()
        for stream in self.live.values():
            stream.stop()

    def _dispatch(self, index: int) -> None:
        planned = self._plan.steps[index]
        if planned.spec.on_loop:
            self.spawn_task(lambda: self._task_unit(planned))
        else:
            self.spawn_thread(lambda: self._thread_unit(planned))

    def _thread_unit(self, planned: PlannedStep) -> None:
        step: PlannedStep | None = planned
        while step is not None:
            if step.live:
                bind = partial(self._bind_live, step)
            else:
                bind = partial(step.bind, self._parameters, self._results, self._overrides)
            try:
                value = self.run_sync(step.name, step.spec, bind)
            except BaseException as error:  # a step may raise anything, SystemExit included: it fails the run
                self.fail(error, step.name)
                return
            step = self._advance(step, value, here_async=False)

    async def _task_unit(self, planned: PlannedStep) -> None:
        step: PlannedStep | None = planned
        while step is not None:
            if step.live:
                bind = partial(self._bind_live, step)
            else:
                bind = partial(step.bind, self._parameters, self._results, self._overrides)
            try:
                value = await self.run_async(step.name, step.spec, bind)
            except BaseException as error:  # a step may raise anything: it fails the run
                self.fail(error, step.name)
                return
            step = self._advance(step, value, here_async=True)

    def _bind_live(self, planned: PlannedStep) -> Call:
        """The call of a step at either end of a stream. It has begun: those that read what it yields may begin too."""
        streams = {name: self.live[name] for name in planned.reads}
        call = planned.bind(self._parameters, ChainMap(streams, self._results), self._overrides)
        ready: list[int] = []
        with self._lock:
            for index in planned.readers:
                self._waits_for[index] -= 1
                if self._waits_for[index] == 0:
                    ready.append(index)
        self._start_units(ready)
        return call

    def _advance(self, planned: PlannedStep, value: Any, *, here_async: bool) -> PlannedStep | None:
        """Note a result and start what became ready elsewhere. Returns the step with which this unit goes on."""
        ready: list[int] = []
        with self._lock:
            self._results[planned.name] = value
            for index in planned.downstream:
                self._waits_for[index] -= 1
                if self._waits_for[index] == 0:
                    ready.append(index)
        if planned.readers and (stream := self.live.get(planned.name)) is not None:  # None: abandoned, and forgotten
            stream.close()
        steps = self._plan.steps
        here = next((index for index in ready if steps[index].spec.on_loop is here_async), None)
        self._start_units([index for index in ready if index != here])
        return None if here is None else steps[here]

    def _start_units(self, indexes: list[int]) -> None:
        if indexes:
            self.add_units(len(indexes))
        for index in indexes:
            self._dispatch(index)

    def _outputs(self) -> Iterable[tuple[str, str | None, Any]]:
        for output in self._plan.outputs:
            yield output.name, output.step_name, output.value(self._parameters, self._results)

    def _tap(self, tap: str) -> tuple[str | None, Any]:
        name, index = tap_place(self._definition, tap)
        value = self._results[name]
        return name, value if index is None else value[index]

    def _forget(self) -> None:
        self._results = {}
        self.live = {}


def tap_place(definition: PipelineDefinition, tap: str) -> tuple[str, int | None]:
    """The node of a tap, and which of its outputs (None: its only one). Raises KeyError for an unknown tap."""
    name, _, output = tap.rpartition(".")
    for node in definition.nodes:
        if node.name == name:
            names = [declared.name for declared in node.step.outputs]
            if output in names:
                return name, names.index(output) if len(names) > 1 else None
    raise KeyError(tap)
