"""Runs a pipeline in this process when it is called outside a service: one step after the other, in graph order.

No threads of its own, no timeouts, nothing is kept: what a unit test or a notebook wants. The service's executor has
the same meaning and is tested against this.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeserve.sdk.arguments import resolver
from pipeserve.sdk.context import LocalRun, StepContext, current_scope
from pipeserve.sdk.definition import Mode, PipelineDefinition, StepDefinition
from pipeserve.sdk.step import Step
from pipeserve.sdk.stream import Streamed, as_stream


class LocalBody(StepContext):
    """The scope of a dynamic pipeline's body: each step call runs at once."""

    def __init__(self, run: LocalRun, *, is_async: bool) -> None:
        super().__init__(run, None)
        self._is_async = is_async

    def call_step(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run it: its value, or for an async step in an async body a coroutine of it."""
        definition = step.definition
        context = StepContext(self._run, step.call_name or definition.name)
        coroutine = run_step(definition, context, single_call(definition, args, kwargs))
        if not definition.mode.is_async:
            return finish_now(coroutine)
        return coroutine if self._is_async else finish_in_loop(coroutine)


class LocalPipeline:
    """Calls one pipeline in this process. ``on_init`` runs before the first call, ``on_cleanup`` at exit."""

    def __init__(self, definition: PipelineDefinition) -> None:
        self._definition = definition
        self._lock = threading.Lock()
        self._state: Any = None
        self._ready = False

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the pipeline returns for these arguments; for an ``async def`` pipeline, a coroutine of it."""
        definition = self._definition
        if definition.capture.memory_only:
            warnings.warn(
                f"pipeline {definition.name!r}: Capture(memory_only=True) is ignored outside serving",
                UserWarning,
                stacklevel=3,
            )
        bound = definition.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if definition.dynamic:
            return self._call_body(bound)
        coroutine = self._interpret(bound.arguments)
        if definition.mode is Mode.ASYNC:
            return coroutine
        needs_loop = any(node.step.mode.is_async for node in definition.nodes)
        return finish_in_loop(coroutine) if needs_loop else finish_now(coroutine)

    def _prepared_state(self) -> Any:
        with self._lock:
            if not self._ready:
                definition = self._definition
                if definition.on_init is not None:
                    self._state = call_hook(definition.on_init)
                if definition.on_cleanup is not None:
                    atexit.register(call_hook, definition.on_cleanup, self._state)
                self._ready = True
            return self._state

    async def _interpret(self, parameters: dict[str, Any]) -> Any:
        definition = self._definition
        run = LocalRun(self._prepared_state())
        results: dict[str, Any] = {}
        for node in definition.nodes:
            values = {name: resolver(argument)(parameters, results) for name, argument in node.arguments.items()}
            results[node.name] = await run_step(node.step, StepContext(run, node.name), call_of(node.step, values))
        return None if definition.returned is None else resolver(definition.returned)(parameters, results)

    def _call_body(self, bound: inspect.BoundArguments) -> Any:
        definition = self._definition
        scope = LocalBody(LocalRun(self._prepared_state()), is_async=definition.mode.is_async)

        def start() -> Any:
            return definition.fn(*bound.args, **bound.kwargs)

        if definition.mode is Mode.ASYNC:
            return _scoped_coroutine(scope, start)
        if definition.mode is Mode.GENERATOR:
            return _scoped_iterator(scope, start)
        if definition.mode is Mode.ASYNC_GENERATOR:
            return _scoped_async_iterator(scope, start)
        token = current_scope.set(scope)
        try:
            return start()
        finally:
            current_scope.reset(token)


def call_of(step: StepDefinition, values: dict[str, Any]) -> Callable[[], Any]:
    """The call of ``step`` with these values, passed as its signature says."""
    positional = [values[parameter.name] for parameter in step.parameters if not parameter.keyword_only]
    named = {parameter.name: values[parameter.name] for parameter in step.parameters if parameter.keyword_only}
    return single_call(step, tuple(positional), named)


def single_call(step: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    """One call of ``step`` as a pipeline makes it: a batched step gets a batch of one, a Stream what is there."""
    if step.batch is not None:
        return _batch_of_one(step, args, kwargs)
    if step.takes_streams:
        args, kwargs = with_streams(step, args, kwargs)
    return lambda: step.fn(*args, **kwargs)


def with_streams(
    step: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, with whole lists made readable as streams where the step takes such."""
    streams = step.takes_streams
    positional = [parameter.name for parameter in step.parameters if not parameter.keyword_only]
    return (
        tuple(as_stream(value) if name in streams else value for name, value in zip(positional, args, strict=False)),
        {name: as_stream(value) if name in streams else value for name, value in kwargs.items()},
    )


def _batch_of_one(step: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    def call() -> Any:
        return step.fn(*[[value] for value in args], **{name: [value] for name, value in kwargs.items()})

    if step.mode is Mode.SYNC:
        return lambda: only_result(step.name, call())

    async def call_async() -> Any:
        return only_result(step.name, await call())

    return call_async


def only_result(name: str, results: Any) -> Any:
    """The result of a batch of one; raises it, if it is an exception."""
    if len(results) != 1:
        raise ValueError(f"batched step {name!r} returned {len(results)} results for 1 item")
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


async def run_step(step: StepDefinition, context: StepContext, call: Callable[[], Any]) -> Any:
    """The value of one step call: a stream's is the list of what it yields."""
    token = current_scope.set(context)
    try:
        result = call()
        if step.mode is Mode.ASYNC:
            return await result
        if step.mode is Mode.GENERATOR:
            return Streamed(result)
        if step.mode is Mode.ASYNC_GENERATOR:
            return Streamed([item async for item in result])
        return result
    finally:
        current_scope.reset(token)


def finish_now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError("a step without async code waited")


def finish_in_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine, from sync code: on a loop of its own, in another thread if this one has a loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def call_hook(hook: Callable[..., Any], *state: Any) -> Any:
    """Call ``on_init`` or ``on_cleanup``; it may be async, and need not take the state."""
    result = hook(*state) if state and takes_state(hook) else hook()
    return finish_in_loop(result) if inspect.iscoroutine(result) else result


def takes_state(hook: Callable[..., Any]) -> bool:
    """Whether a hook has a parameter to take the pipeline's state."""
    try:
        parameters = inspect.signature(hook).parameters.values()
    except ValueError:  # a builtin without a signature
        return False
    return any(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters
    )


async def _scoped_coroutine(scope: StepContext, start: Callable[[], Any]) -> Any:
    token = current_scope.set(scope)
    try:
        return await start()
    finally:
        current_scope.reset(token)


def _scoped_iterator(scope: StepContext, start: Callable[[], Any]) -> Iterator[Any]:
    iterator = iter(start())
    while True:
        # The caller's code runs between two items: the scope is the body's only.
        token = current_scope.set(scope)
        try:
            item = next(iterator)
        except StopIteration:
            return
        finally:
            current_scope.reset(token)
        yield item


async def _scoped_async_iterator(scope: StepContext, start: Callable[[], Any]) -> AsyncIterator[Any]:
    iterator = aiter(start())
    while True:
        token = current_scope.set(scope)
        try:
            item = await anext(iterator)
        except StopAsyncIteration:
            return
        finally:
            current_scope.reset(token)
        yield item
