"""The Realtime runtime: runs one deployment's pipeline in this process, and lives as long as the process.

The plan, the threads and the pipeline's state are made once and shared by all requests; everything of a request lives
in its own :class:`~pipeserve.runtime.executor.Run`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from pipeserve.errors import DrainingError, InvalidParametersError
from pipeserve.runtime.batches import Batches
from pipeserve.runtime.breaker import CircuitBreaker
from pipeserve.runtime.cache.shared_tier import SharedTier
from pipeserve.runtime.cache.step_cache import StepCache
from pipeserve.runtime.capture.isolation import LogRouting
from pipeserve.runtime.capture.masking import RunMasking
from pipeserve.runtime.capture.teller import Telling
from pipeserve.runtime.dynamic_run import DynamicRun
from pipeserve.runtime.executor import Run
from pipeserve.runtime.plan import Plan, compile_plan
from pipeserve.runtime.ports import SharedCache
from pipeserve.runtime.run import EventSink, RunRequest, RunResult
from pipeserve.runtime.static_run import StaticRun, tap_place
from pipeserve.runtime.step_calls import Engine
from pipeserve.runtime.step_spec import StepSpecs
from pipeserve.runtime.threads import ThreadPool
from pipeserve.runtime.tracing import Tracing
from pipeserve.runtime.values.codec import Codec
from pipeserve.runtime.values.materializers import Materializers
from pipeserve.runtime.values.outputs import OutputEncoder
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.local import takes_state
from pipeserve.sdk.schema import BoundParameters
from pipeserve.settings import RuntimeSettings

if TYPE_CHECKING:
    from pipeserve.runtime.processes import ProcessPool

_THREADS_PER_RUN = 4  # parallel branches of one run; beyond, they wait for a thread. Readers of a stream come on top


class RealtimeRuntime:
    """Runs a pipeline. Enter it on the loop that its async steps shall run on."""

    def __init__(
        self,
        definition: PipelineDefinition,
        settings: RuntimeSettings,
        *,
        shared_cache: SharedCache | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """``shared_cache``: where steps with ``Cache(scope="shared")`` share results; None: in this process only.

        ``tracing``: who is told of runs and steps; None: nobody.
        """
        self.definition = definition
        self.settings = settings
        self.tracing = tracing
        self.materializers = Materializers(definition.materializers)
        self.codec = Codec(self.materializers)
        self._outputs = OutputEncoder(definition, self.materializers, settings.inline_limit)
        self.masking = RunMasking.of(definition)
        """What is masked in its runs; None: nothing."""
        self.cache = StepCache(
            ttl=settings.cache_ttl, max_entries=settings.cache_max_entries, max_bytes=settings.cache_max_bytes
        )
        self._shared_cache = shared_cache
        self._specs = StepSpecs(definition)
        self._plan = None if definition.dynamic else compile_plan(definition, self._specs)
        self._engine: Engine | None = None
        self._processes: ProcessPool | None = None
        self._runs: set[Run] = set()

    async def __aenter__(self) -> Self:
        if any(step.executor == "process" for step in self.definition.steps):
            self._new_pool()  # here, so that a step which no other process can import is refused at the start
        routing = LogRouting(keep=self.definition.capture.logs)
        state = None
        if self.definition.on_init is not None:
            state = await _run_hook(self.definition.on_init)
        routing.__enter__()
        loop = asyncio.get_running_loop()
        per_run = _THREADS_PER_RUN + (0 if self._plan is None else self._plan.waiting_threads)
        threads = ThreadPool(self.settings.max_concurrency * per_run, f"steps-{self.definition.name}")
        self._engine = Engine(
            loop=loop,
            threads=threads,
            specs=self._specs,
            cache=self.cache,
            shared_tier=self._make_shared_tier(loop),
            batches=Batches(threads, state, lambda: self.active, routing),
            open_processes=self._open_processes,
            outputs=self._outputs,
            telling=Telling(self.definition.capture, self.settings.log_limit, self.materializers),
            masking=self.masking,
            loop_thread=threading.get_ident(),
            pipeline_name=self.definition.name,
            pipeline_state=state,
            log_routing=routing,
            timeout_grace=self.settings.timeout_grace,
            expose_tracebacks=self.settings.expose_tracebacks,
            tracing=self.tracing,
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
            await self._close(engine)
        finally:
            engine.log_routing.__exit__()
            self._engine = None
            if self.definition.on_cleanup is not None:
                await _run_hook(self.definition.on_cleanup, engine.pipeline_state)

    def _make_shared_tier(self, loop: asyncio.AbstractEventLoop) -> SharedTier | None:
        if self._shared_cache is None:
            return None
        settings = self.settings
        # Opens after few errors and for a short while: a miss costs a computation, no more.
        breaker = CircuitBreaker(error_threshold=settings.breaker_error_threshold, min_events=5, open_seconds=5.0)
        return SharedTier(self._shared_cache, self.codec, loop, default_ttl=settings.cache_ttl, breaker=breaker)

    def _new_pool(self) -> ProcessPool:
        from pipeserve.runtime.processes import ProcessPool

        self._processes = ProcessPool(self.definition, max_processes=self.settings.step_processes)
        return self._processes

    async def _open_processes(self) -> ProcessPool:
        """The pool for steps that run in processes. A dynamic body may call such a step though its code names none."""
        return self._processes or self._new_pool()

    async def _close(self, engine: Engine) -> None:
        for task in list(engine.flights):
            task.cancel()
        if engine.flights:
            await asyncio.wait(list(engine.flights), timeout=1)
        await engine.batches.aclose()
        if engine.shared_tier is not None:
            await engine.shared_tier.aclose()
        if self._processes is not None:
            await self._processes.__aexit__(None, None, None)
            self._processes = None
        await asyncio.to_thread(engine.threads.close, 1.0)

    @property
    def plan(self) -> Plan | None:
        """The graph that its runs walk; None for a dynamic pipeline."""
        return self._plan

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

    def shown_parameters(self, raw: bytes, parameters: BoundParameters) -> bytes | None:
        """A request's ``parameters`` (one JSON object, as it was sent) as its job may show them; None: as they are."""
        return None if self.masking is None else self.masking.shown_parameters(raw, parameters)

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
        run.when_done(self._ended)
        run.start()
        return run

    def _ended(self, run: Run) -> None:
        self._runs.discard(run)
        if self._engine is not None:
            self._engine.batches.review()  # a batch may have waited for a call of this run


async def _run_hook(hook: Callable[..., Any], *state: Any) -> Any:
    """Call ``on_init`` or ``on_cleanup``: an async one on this loop, a sync one in a thread."""
    arguments = state if state and takes_state(hook) else ()
    if inspect.iscoroutinefunction(hook):
        return await hook(*arguments)
    result = await asyncio.to_thread(hook, *arguments)
    return await result if inspect.isawaitable(result) else result  # a lambda around an async function, say


__all__ = ["RealtimeRuntime", "Run", "RunRequest", "RunResult"]
