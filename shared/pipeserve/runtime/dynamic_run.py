"""The run of a dynamic pipeline: its body runs, and each step that it calls runs at once.

A ``def`` body runs in a pool thread and its sync steps in the same one; async steps go to the loop while it waits.
An ``async def`` body runs on the loop; a sync step that it calls runs there too and holds up the loop, like any sync
call in async code: make slow steps async, or call them with ``asyncio.to_thread``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pipeserve.runtime.executor import Engine, Run
from pipeserve.runtime.run import EventSink, RunRequest
from pipeserve.sdk.context import StepContext, current_scope
from pipeserve.sdk.definition import Mode, PipelineDefinition
from pipeserve.sdk.step import Step


class DynamicRun(Run):
    """One run of a dynamic pipeline's body."""

    def __init__(
        self, engine: Engine, definition: PipelineDefinition, request: RunRequest, sink: EventSink | None
    ) -> None:
        super().__init__(engine, request, sink)
        self._definition = definition
        self._calls: Counter[str] = Counter()
        self._tapped: dict[str, Any] = {}
        self._value: Any = None
        self._failed_step: tuple[BaseException, str] | None = None

    def _begin(self) -> None:
        self.add_units(1)
        if self._definition.mode.is_async:
            self.spawn_task(self._task_body)
        else:
            self.spawn_thread(self._thread_body)

    def _call_body(self) -> Any:
        values = self.request.parameters.values
        parameters = self._definition.parameters_list
        return self._definition.fn(
            *[values[parameter.name] for parameter in parameters if not parameter.keyword_only],
            **{parameter.name: values[parameter.name] for parameter in parameters if parameter.keyword_only},
        )

    def _thread_body(self) -> None:
        scope = DynamicBody(self)
        token = current_scope.set(scope)
        try:
            self.checkpoint()
            value = self._call_body()
            self._value = self._drain(value, scope) if self._definition.mode is Mode.GENERATOR else value
        except BaseException as error:
            self._body_failed(error)
        finally:
            current_scope.reset(token)
            scope.end_print()
        self.add_units(-1)

    async def _task_body(self) -> None:
        scope = DynamicBody(self)
        token = current_scope.set(scope)
        try:
            with self._cancellable():
                value = self._call_body()
                streams = self._definition.mode is Mode.ASYNC_GENERATOR
                self._value = await self._drain_async(value, scope) if streams else await value
        except asyncio.CancelledError as error:
            if not self.cancelled:  # cancelled from within: the body's own doing
                self._body_failed(error)
        except BaseException as error:
            self._body_failed(error)
        finally:
            current_scope.reset(token)
            scope.end_print()
        self.add_units(-1)

    def _body_failed(self, error: BaseException) -> None:
        step = None
        seen: BaseException | None = error
        while seen is not None and self._failed_step is not None:
            if seen is self._failed_step[0]:
                step = self._failed_step[1]
                break
            seen = seen.__cause__ or seen.__context__
        self.fail(error, step)

    # ---- what the body calls

    def call_step(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a step of the body at once: its value, or for an async step in an async body a coroutine of it."""
        definition = step.definition
        bound = definition.signature.bind(*args, **kwargs)
        for (step_name, parameter), value in self.request.parameters.overrides.items():
            if step_name == definition.name and parameter not in bound.arguments:
                bound.arguments[parameter] = value
        name = self._new_name(step)

        def call() -> Any:
            return definition.fn(*bound.args, **bound.kwargs)

        if definition.mode.is_async:
            coroutine = self._noted_async(name, step, self.run_async(name, definition.mode, definition.timeout, call))
            if self._definition.mode.is_async:
                return coroutine
            return asyncio.run_coroutine_threadsafe(coroutine, self.engine.loop).result()
        try:
            value = self.run_sync(name, definition.mode, definition.timeout, call)
        except BaseException as error:
            self._failed_step = (error, name)
            raise
        self._note(name, step, value)
        return value

    async def _noted_async(self, name: str, step: Step[..., Any], running: Any) -> Any:
        try:
            value = await running
        except BaseException as error:
            self._failed_step = (error, name)
            raise
        self._note(name, step, value)
        return value

    def _new_name(self, step: Step[..., Any]) -> str:
        base = step.call_name or step.definition.name
        with self._lock:
            self._calls[base] += 1
            count = self._calls[base]
        return base if count == 1 else f"{base}_{count}"

    def _note(self, name: str, step: Step[..., Any], value: Any) -> None:
        if not self.request.taps:
            return
        outputs = step.definition.outputs
        for index, output in enumerate(outputs):
            tap = f"{name}.{output.name}"
            if tap in self.request.taps:
                self._tapped[tap] = value[index] if len(outputs) > 1 else value

    def _outputs(self) -> Iterable[tuple[str, str | None, Any]]:
        returns = self._definition.returns
        if len(returns) > 1:
            for output, value in zip(returns, self._value, strict=True):
                yield output.name, None, value
        elif returns or self._value is not None:
            yield returns[0].name if returns else "output", None, self._value

    def _tap(self, tap: str) -> tuple[str | None, Any]:
        return tap.rpartition(".")[0], self._tapped.get(tap)


class DynamicBody(StepContext):
    """The scope of a dynamic pipeline's body."""

    __slots__ = ("_dynamic_run",)

    def __init__(self, run: DynamicRun) -> None:
        super().__init__(run, None)
        self._dynamic_run = run

    def call_step(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run it at once."""
        return self._dynamic_run.call_step(step, args, kwargs)
