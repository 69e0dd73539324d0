"""The run of a dynamic pipeline: its body runs, and each step that it calls runs at once.

A ``def`` body runs in a pool thread and its sync steps in the same one; async steps go to the loop while it waits.
An ``async def`` body runs on the loop; a sync step that it calls runs there too and holds up the loop, like any sync
call in async code: make slow steps async, or call them with ``asyncio.to_thread``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator, Iterable
from typing import Any

from pipeserve.runtime.executor import Run
from pipeserve.runtime.failures import causes, traceback_of
from pipeserve.runtime.run import EventSink, RunRequest, RunStopped
from pipeserve.runtime.step_calls import Engine
from pipeserve.runtime.step_spec import Call
from pipeserve.sdk.context import StepContext, current_scope
from pipeserve.sdk.definition import Mode, PipelineDefinition
from pipeserve.sdk.local import with_streams
from pipeserve.sdk.step import Step


class DynamicRun(Run):
    """One run of a dynamic pipeline's body."""

    def __init__(
        self, engine: Engine, definition: PipelineDefinition, request: RunRequest, sink: EventSink | None
    ) -> None:
        super().__init__(engine, request, sink)
        self._definition = definition
        self._names: set[str] = set()
        self._tapped: dict[str, Any] = {}
        self._value: Any = None
        self._failed_steps: list[tuple[BaseException, str]] = []

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
        with self._body() as scope:
            self.checkpoint()
            value = self._call_body()
            self._value = self.drain(value, scope) if self._definition.mode is Mode.GENERATOR else value

    async def _task_body(self) -> None:
        with self._body() as scope, self.cancellable(None):
            value = self._call_body()
            streams = self._definition.mode is Mode.ASYNC_GENERATOR
            self._value = await self.drain_async(value, scope) if streams else await value

    @contextlib.contextmanager
    def _body(self) -> Generator[DynamicBody]:
        scope = DynamicBody(self)
        token = current_scope.set(scope)
        try:
            yield scope
        except BaseException as error:  # the body may raise anything, SystemExit included: it fails the run
            step = self._step_behind(error)
            if step is None and not isinstance(error, RunStopped):
                self._tell_traceback(None, traceback_of(error))
            self.fail(error, step)
        finally:
            current_scope.reset(token)
            scope.end_print()

    def _step_behind(self, error: BaseException) -> str | None:
        """The step whose error led to this one."""
        names = {id(failed): name for failed, name in self._failed_steps}
        return next((names[id(cause)] for cause in causes(error) if id(cause) in names), None)

    # ---- what the body calls

    def call_step(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a step of the body at once: its value, or for an async step in an async body a coroutine of it."""
        definition = step.definition
        bound = definition.signature.bind(*args, **kwargs)
        for (step_name, parameter), value in self.request.parameters.overrides.items():
            if step_name == definition.name and parameter not in bound.arguments:
                bound.arguments[parameter] = value
        spec = self.engine.specs.of(definition)
        if spec.on_loop and not definition.mode.is_async and self.engine.on_loop_thread:
            raise TypeError(
                f"step {definition.name!r} is `def` and batched or in a process of its own: called like this it would "
                f"hold up the event loop for ever. Make it `async def`, or use "
                f"`await asyncio.to_thread({definition.name}, …)`"
            )
        name = self._new_name(step)
        args, kwargs = with_streams(definition, bound.args, bound.kwargs)
        call = Call(spec, args, kwargs)
        if spec.on_loop:
            coroutine = self._call_async(name, step, call)
            if definition.mode.is_async and self._definition.mode.is_async:
                return coroutine
            return asyncio.run_coroutine_threadsafe(coroutine, self.engine.loop).result()
        try:
            with self._counted(name):
                value = self.run_sync(name, spec, lambda: call)
        except StopIteration as error:
            if not self._definition.mode.is_async:
                raise
            # The body may have called it by asyncio.to_thread, which would then wait for ever.
            raise RuntimeError(f"step {name!r} raised StopIteration") from error
        self._note(name, step, value)
        return value

    async def _call_async(self, name: str, step: Step[..., Any], call: Call) -> Any:
        with self._counted(name):
            value = await self.run_async(name, call.spec, lambda: call)
        self._note(name, step, value)
        return value

    @contextlib.contextmanager
    def _counted(self, name: str) -> Generator[None]:
        """A step call as a unit of its own: the body may have put it into a thread or task that outlives it."""
        self.checkpoint()
        self.add_units(1)
        try:
            yield
        except BaseException as error:
            if not isinstance(error, (RunStopped, asyncio.CancelledError)):
                self._failed_steps.append((error, name))
            raise
        finally:
            self.add_units(-1)

    def _new_name(self, step: Step[..., Any]) -> str:
        base = step.call_name or step.definition.name
        with self._lock:
            name, count = base, 1
            while name in self._names:
                count += 1
                name = f"{base}_{count}"
            self._names.add(name)
        return name

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
            values = tuple(self._value)
            if len(values) != len(returns):
                raise ValueError(f"it returned {len(values)} values for its {len(returns)} outputs")
            for output, value in zip(returns, values, strict=True):
                yield output.name, None, value
        elif returns or self._value is not None:
            yield returns[0].name if returns else "output", None, self._value

    def _tap(self, tap: str) -> tuple[str | None, Any]:
        return tap.rpartition(".")[0], self._tapped.get(tap)

    def _forget(self) -> None:
        self._value = None
        self._tapped = {}
        self._failed_steps = []


class DynamicBody(StepContext):
    """The scope of a dynamic pipeline's body."""

    __slots__ = ("_dynamic_run",)

    def __init__(self, run: DynamicRun) -> None:
        super().__init__(run, None)
        self._dynamic_run = run

    def call_step(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run it at once."""
        return self._dynamic_run.call_step(step, args, kwargs)
