"""The Realtime runtime: runs one deployment's pipeline in this process, and lives as long as the process.

The plan, the threads and the pipeline's state are made once and shared by all requests; everything of a request lives
in its own :class:`~pipeserve.runtime.executor.Run`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Self

from pipeserve.errors import DrainingError, InvalidParametersError
from pipeserve.runtime.dynamic_run import DynamicRun
from pipeserve.runtime.executor import Run
from pipeserve.runtime.isolation import LogRouting
from pipeserve.runtime.plan import compile_plan
from pipeserve.runtime.run import EventSink, RunRequest, RunResult
from pipeserve.runtime.static_run import StaticRun, tap_place
from pipeserve.runtime.step_calls import Engine
from pipeserve.runtime.threads import ThreadPool
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.local import takes_state
from pipeserve.settings import RuntimeSettings

_THREADS_PER_RUN = 4  # parallel branches of one run; beyond, they wait for a thread


class RealtimeRuntime:
    """Runs a pipeline. Enter it on the loop that its async steps shall run on."""

    def __init__(self, definition: PipelineDefinition, settings: RuntimeSettings) -> None:
        self.definition = definition
        self.settings = settings
        self._plan = None if definition.dynamic else compile_plan(definition)
        self._engine: Engine | None = None
        self._runs: set[Run] = set()

    async def __aenter__(self) -> Self:
        routing = LogRouting()
        state = None
        if self.definition.on_init is not None:
            state = await _run_hook(self.definition.on_init)
        if self.definition.capture.logs:
            routing.__enter__()
        self._engine = Engine(
            loop=asyncio.get_running_loop(),
            threads=ThreadPool(self.settings.max_concurrency * _THREADS_PER_RUN, f"steps-{self.definition.name}"),
            pipeline_name=self.definition.name,
            pipeline_state=state,
            log_routing=routing,
            timeout_grace=self.settings.timeout_grace,
            expose_tracebacks=self.settings.expose_tracebacks,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        engine = self._engine
        assert engine is not None
        for run in list(self._runs):
            run.interrupt(DrainingError("The process that ran this is shutting down."))
        if self._runs:
            await asyncio.wait([asyncio.ensure_future(run.wait()) for run in self._runs], timeout=1)
        try:
            await asyncio.to_thread(engine.threads.close, 1.0)
        finally:
            if self.definition.capture.logs:
                engine.log_routing.__exit__()
            self._engine = None
            if self.definition.on_cleanup is not None:
                await _run_hook(self.definition.on_cleanup, engine.pipeline_state)

    @property
    def active(self) -> int:
        """How many runs are under way."""
        return len(self._runs)

    def check_taps(self, taps: Sequence[str]) -> None:
        """Raise InvalidParametersError for a tap that no step of a static pipeline has."""
        if self.definition.dynamic:
            return
        known = [f"{node.name}.{output.name}" for node in self.definition.nodes for output in node.step.outputs]
        errors: list[dict[str, Any]] = []
        for tap in taps:
            try:
                tap_place(self.definition, tap)
            except KeyError:
                detail = f"tap {tap!r} is unknown; known: {', '.join(known)}"
                errors.append({"name": "taps", "type": "unknown", "detail": detail})
        if errors:
            raise InvalidParametersError("; ".join(error["detail"] for error in errors), errors=errors)

    def start(self, request: RunRequest, sink: EventSink | None) -> Run:
        """Start a run; on the runtime's loop. ``sink`` takes what it reports; None: nobody follows."""
        engine = self._engine
        if engine is None:
            raise RuntimeError("the runtime is not running: use `async with RealtimeRuntime(...)`")
        if self._plan is None:
            run: Run = DynamicRun(engine, self.definition, request, sink)
        else:
            run = StaticRun(engine, self.definition, self._plan, request, sink)
        self._runs.add(run)
        run.when_done(self._runs.discard)
        run.start()
        return run


async def _run_hook(hook: Callable[..., Any], *state: Any) -> Any:
    """Call ``on_init`` or ``on_cleanup``: an async one on this loop, a sync one in a thread."""
    arguments = state if state and takes_state(hook) else ()
    if inspect.iscoroutinefunction(hook):
        return await hook(*arguments)
    result = await asyncio.to_thread(hook, *arguments)
    return await result if inspect.isawaitable(result) else result  # a lambda around an async function, say


__all__ = ["RealtimeRuntime", "Run", "RunRequest", "RunResult"]
