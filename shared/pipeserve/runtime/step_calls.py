"""One step call of a run: its context, its events, its record, and how it ends.

This is the part of a run that its steps see (:class:`~pipeserve.sdk.context.RunControl`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
)
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pipeserve.errors import InvocationError, Problem, StepFailedError, TimedOutError
from pipeserve.events import EventType
from pipeserve.jobs import JobStatus
from pipeserve.runtime.batches import Batches
from pipeserve.runtime.cache.shared_tier import SharedTier
from pipeserve.runtime.cache.step_cache import Flight, StepCache
from pipeserve.runtime.capture.isolation import LogRouting
from pipeserve.runtime.capture.masking import RunMasking
from pipeserve.runtime.capture.teller import Teller, Telling
from pipeserve.runtime.capture.veil import Veil
from pipeserve.runtime.capture.visuals import shows_itself
from pipeserve.runtime.failures import cause_of, problem_of, traceback_of, words_of
from pipeserve.runtime.live_stream import LiveStream
from pipeserve.runtime.run import EventSink, RunRequest, RunStopped, StepRecord
from pipeserve.runtime.step_policies import PolicyCall
from pipeserve.runtime.step_spans import end_step_span, step_span
from pipeserve.runtime.step_spec import Call, StepSpec, StepSpecs
from pipeserve.runtime.threads import ThreadPool
from pipeserve.runtime.tracing import Tracing
from pipeserve.runtime.values.outputs import OutputEncoder
from pipeserve.sdk.context import StepContext, current_scope
from pipeserve.sdk.definition import Mode
from pipeserve.sdk.stream import Streamed

if TYPE_CHECKING:
    from pipeserve.runtime.processes import ProcessPool

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """What all runs of one runtime share."""

    loop: asyncio.AbstractEventLoop
    threads: ThreadPool
    pipeline_name: str
    pipeline_state: Any
    log_routing: LogRouting
    timeout_grace: float
    expose_tracebacks: bool
    specs: StepSpecs
    cache: StepCache
    shared_tier: SharedTier | None
    """None: steps are cached in this process only."""
    batches: Batches
    open_processes: Callable[[], Awaitable[ProcessPool]]
    """The pool for steps that run in processes of their own."""
    outputs: OutputEncoder
    telling: Telling
    masking: RunMasking | None
    """None: nothing of the pipeline is masked."""
    loop_thread: int
    """The thread on which :attr:`loop` runs."""
    tracing: Tracing | None = None
    """Who is told of each step; None: nobody."""
    flights: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])
    """Work that belongs to no single run. asyncio itself keeps only weak references."""

    def in_background(self, task: asyncio.Task[Any]) -> None:
        """Keep ``task``, which belongs to no single run, until it is done."""
        self.flights.add(task)
        task.add_done_callback(self.flights.discard)

    @property
    def on_loop_thread(self) -> bool:
        """Whether this is the loop's thread: it must not wait for anything."""
        return threading.get_ident() == self.loop_thread


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run must stop."""

    status: JobStatus
    error: Problem


class StepCalls(ABC):
    """Runs steps for one run, in threads and on the loop."""

    def __init__(self, engine: Engine, request: RunRequest, sink: EventSink | None) -> None:
        self.engine = engine
        self.request = request
        self.job_id = request.job_id
        self.attempt = request.attempt
        self.run_name = request.run_name
        self.pipeline_state = engine.pipeline_state
        self.log_routing = engine.log_routing
        self.steps: list[StepRecord] = []
        self._sink = sink
        self._lock = threading.Lock()
        self._stop: Stop | None = None
        self._over = False
        """Nothing that a step does from now on counts."""
        self._tasks: set[asyncio.Task[Any]] = set()
        """The tasks that a stop cancels."""
        self._on_stop: set[Callable[[], object]] = set()
        """What else a stop calls."""
        self.live: dict[str, LiveStream[Any]] = {}
        """What steps yield that others read meanwhile, by the name of the step."""
        veil = None if engine.masking is None else engine.masking.veil(request.parameters)
        self.teller = Teller(engine.telling, request.job_id, request.attempt, sink, veil)
        self.deadline = math.inf if request.timeout is None else time.monotonic() + request.timeout
        """By ``time.monotonic()``."""

    @abstractmethod
    def expire(self, error: TimedOutError) -> None:
        """A timeout is over: stop the run; on the loop."""

    # ---- RunControl

    @property
    def cancelled(self) -> bool:
        """Whether the run should stop, for whatever reason."""
        return self._stop is not None

    def remaining(self) -> float:
        """Seconds to the run's deadline."""
        return self.deadline - time.monotonic()

    def checkpoint(self) -> None:
        """Raise RunStopped, if the run must stop now."""
        if self._stop is not None or self._over:
            raise RunStopped

    def report(
        self,
        event_type: EventType,
        step_name: str | None,
        data: Any,
        *,
        level: str | None = None,
        message: str | None = None,
        error: Problem | None = None,
    ) -> bool | None:
        """Tell whoever follows. A value without a JSON form is told as null, with its type: telling changes nothing.

        False: no more of its kind is kept.
        """
        if self._sink is None or self._over:
            return None
        return self.teller.tell(event_type, step_name, data, level, message, error)

    def visualize(self, step_name: str | None, value: Any, name: str | None) -> None:
        """Draw ``value``, keep it with the job and tell of it."""
        if not self._over:
            self.teller.show(step_name, value, name)

    @property
    def veil(self) -> Veil | None:
        """What is masked in this run."""
        return self.teller.veil

    @property
    def followed(self) -> bool:
        """Whether anybody is told of it."""
        return self._sink is not None and not self._over

    @property
    def log_limit(self) -> int:
        """Bytes of log text that are kept."""
        return self.engine.telling.log_limit

    @property
    def draws(self) -> bool:
        """Whether what steps show is kept."""
        return self.teller.draws

    # ---- calls

    def run_sync(self, name: str, spec: StepSpec, bind: Callable[[], Call]) -> Any:
        """The value of one sync step, run here and now. Raises what the step raises, or RunStopped."""
        if not spec.plain:
            with (opened := _StepCall(self, name, spec, None)) as context:
                value = PolicyCall(self, context, opened.record, self._bound(name, spec, bind)).value()
                self._returned(context, spec, value)
                return value
        with _StepCall(self, name, spec, spec.timeout) as context:
            value = self._bound(name, spec, bind)()
            if spec.mode is Mode.GENERATOR:
                value = self.drain(value, context)
            self._returned(context, spec, value)
            return value

    async def run_async(self, name: str, spec: StepSpec, bind: Callable[[], Call]) -> Any:
        """The value of one step that is awaited, run in this task. Raises what the step raises, or RunStopped."""
        if not spec.plain:
            with (opened := _StepCall(self, name, spec, None)) as context, self.cancellable(name):
                value = await PolicyCall(self, context, opened.record, self._bound(name, spec, bind)).value_async()
                self._returned(context, spec, value)
                return value
        with _StepCall(self, name, spec, spec.timeout) as context, self.cancellable(name):
            value = self._bound(name, spec, bind)()
            value = await (self.drain_async(value, context) if spec.mode is Mode.ASYNC_GENERATOR else value)
            self._returned(context, spec, value)
            return value

    def _bound(self, name: str, spec: StepSpec, bind: Callable[[], Call]) -> Call:
        """The call; what of it is masked is known before it begins."""
        call = bind()
        if spec.masking is not None:
            if self.teller.veil is None:  # a dynamic body calls a step that its code does not name
                self.teller.veil = Veil()
            spec.masking.begin(self.teller.veil, name, call.arguments(), streams=spec.mode.streams)
        return call

    def _returned(self, context: StepContext, spec: StepSpec, value: Any) -> None:
        """A step has its value: it is shown, if it is of a kind that shows itself, and masked, if it is masked."""
        masking = spec.masking
        if masking is not None and masking.result is not None and self.teller.veil is not None:
            masking.complete(self.teller.veil, value)
        elif self.teller.draws:
            members = cast(tuple[Any, ...], value) if isinstance(value, tuple) else (value,)
            for index, member in enumerate(members):
                if shows_itself(member):
                    self.visualize(context.step_name, member, _name_shown(spec, index))

    def drain(self, values: Iterable[Any], context: StepContext) -> list[Any]:
        """All that a generator yields, each sent as an ``output`` event and to who reads it live."""
        drained, keep = _yields_of(context)
        try:
            for value in values:
                context.emit(value)
                keep(value)
        finally:
            if isinstance(values, Generator):  # its `finally` belongs to the step, not to garbage collection
                values.close()
        return drained

    async def drain_async(self, values: AsyncIterator[Any], context: StepContext) -> list[Any]:
        """The same for an async generator."""
        drained, keep = _yields_of(context)
        try:
            async for value in values:
                context.emit(value)
                keep(value)
        finally:
            if isinstance(values, AsyncGenerator):
                await values.aclose()
        return drained

    @contextlib.contextmanager
    def cancellable(self, name: str | None) -> Generator[None]:
        """While entered, a stop cancels the current task, which then raises RunStopped."""
        task = asyncio.current_task()
        assert task is not None
        added = task not in self._tasks  # else: a step awaited by a dynamic body, in the body's own task
        self._tasks.add(task)
        try:
            self.checkpoint()
            yield
        except asyncio.CancelledError:
            if self._stop is not None:
                raise RunStopped from None
            if task.cancelling():
                raise  # the body gave this call up (wait_for, a task group, task.cancel()): Python's meaning holds
            where = f"step {name!r}" if name else f"pipeline {self.engine.pipeline_name!r}"
            raise StepFailedError(f"{where} failed: it was cancelled by its own code", step=name) from None
        except (SystemExit, KeyboardInterrupt) as error:
            # asyncio lets these two out of the loop, whichever task raises them: the whole process would end.
            where = f"step {name!r}" if name else f"pipeline {self.engine.pipeline_name!r}"
            raise StepFailedError(f"{where} failed: {type(error).__name__}: {words_of(error)}", step=name) from error
        finally:
            if added:
                self._tasks.discard(task)

    def enter_step(self, name: str, spec: StepSpec, timeout: float | None) -> tuple[StepRecord, StepContext]:
        """A step begins: its record, and the context in which it runs."""
        self.checkpoint()
        record = StepRecord(name, time.time(), step=spec.definition.name)
        self.steps.append(record)
        self.report(EventType.STEP_STARTED, name, {})
        if timeout is not None:
            self.arm(record, timeout)
        context = StepContext(self, name, timeout)
        if self.live:
            context.live = self.live.get(name)
        return record, context

    def exit_step(self, record: StepRecord, context: StepContext, error: BaseException | None, seconds: float) -> None:
        """A step has ended, with ``error`` or without."""
        context.end_print()
        record.duration = seconds
        if self.teller.veil is not None:
            self.teller.veil.end(record.name)
            record.cache = self.teller.veil.masks.hide_value(record.cache)
        if error is None:
            record.status = "completed"
            data: dict[str, Any] = {"cached": record.cached, "duration": seconds}
            if record.cache is not None:
                data["cache"] = record.cache
            self.report(EventType.STEP_COMPLETED, record.name, data)
        else:
            self._failed(record, error)
        if context.bounded:
            self.disarm(record)

    def _failed(self, record: StepRecord, error: BaseException) -> None:
        if isinstance(error, (RunStopped, asyncio.CancelledError)):
            timed_out = self._stop is not None and self._stop.status is JobStatus.TIMED_OUT
            record.status = "timed_out" if timed_out else "canceled"
            return
        record.status = "failed"
        if not isinstance(cause_of(error), InvocationError):
            self._tell_traceback(record.name, traceback_of(error))
        problem = self.problem(error, record.name)
        data = {"duration": record.duration}
        self.report(EventType.STEP_FAILED, record.name, data, level="error", message=problem.detail, error=problem)

    def _tell_traceback(self, step: str | None, text: str) -> None:
        """To the process's log; to the job's events only where callers may see tracebacks."""
        if self.engine.expose_tracebacks:
            self.report(EventType.LOG, step, {"logger": "traceback"}, level="error", message=text)
        if self.teller.veil is not None:
            text = self.teller.veil.masks.hide(text)
        token = current_scope.set(None)  # what is logged in a step's scope would be an event of the job
        try:
            said = {"job_id": self.job_id, "attempt": self.attempt}
            _log.error("step %r of job %s failed\n%s", step, self.job_id, text.rstrip(), extra=said)
        finally:
            current_scope.reset(token)

    def problem(self, error: BaseException, step: str | None) -> Problem:
        """The problem document of an error that ended a step or the body."""
        problem = problem_of(
            error,
            job_id=self.job_id,
            step=step,
            pipeline_name=self.engine.pipeline_name,
            expose_tracebacks=self.engine.expose_tracebacks,
        )
        return problem if self.teller.veil is None else self.teller.veil.masks.hide_problem(problem)

    # ---- waiting

    @contextlib.contextmanager
    def on_stop(self, callback: Callable[[], object]) -> Generator[None]:
        """While entered, a stop of the run calls ``callback``; at once, if the run is stopping already."""
        with self._lock:
            self._on_stop.add(callback)
            stopping = self._stop is not None
        if stopping:
            callback()
        try:
            yield
        finally:
            with self._lock:
                self._on_stop.discard(callback)

    @contextlib.contextmanager
    def leading(self, flight: Flight) -> Generator[None]:
        """While entered, this run computes for all who wait for ``flight``; a stop leaves it to the others."""
        left = threading.Lock()  # taken once: by a stop

        def leave() -> None:
            if left.acquire(blocking=False):
                flight.leave()

        with self.on_stop(leave):
            yield

    def pause(self, seconds: float, flight: Flight | None = None) -> None:
        """Wait in a thread; with ``flight``, until nobody waits for that. Raises RunStopped if told to stop."""
        woken = threading.Event()
        if flight is None:
            with self.on_stop(woken.set):
                woken.wait(seconds)
            self.checkpoint()
            return
        flight.on_abandoned(woken.set)
        if woken.wait(seconds):
            raise RunStopped

    def wait_on_loop(self, work: Coroutine[Any, Any, T]) -> T | None:
        """In a thread: the result of ``work``, which runs on the loop. Raises RunStopped if told to stop.

        The loop's own thread can't wait: there the work goes on in the background, and the result is None.
        """
        if self.engine.on_loop_thread:
            task = self.engine.loop.create_task(work)
            self.engine.in_background(task)
            task.add_done_callback(self._left_behind)
            return None
        future = asyncio.run_coroutine_threadsafe(work, self.engine.loop)
        with self.on_stop(future.cancel):
            try:
                return future.result()
            except concurrent.futures.CancelledError:
                raise RunStopped from None

    def _left_behind(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, RunStopped):
            _log.error("job %s: work in the background failed", self.job_id, exc_info=error)

    # ---- a step's own timeout

    def arm(self, record: StepRecord, timeout: float) -> None:
        """From now on the step may take ``timeout`` seconds; past them the run is told to stop."""
        self._on_loop(lambda: self._arm(record, timeout))

    def disarm(self, record: StepRecord) -> None:
        """The step has ended in time."""
        self._on_loop(lambda: self._disarm(record))

    def _arm(self, record: StepRecord, timeout: float) -> None:
        if record.status == "running" and not self._over:
            error = TimedOutError(
                f"step {record.name!r} took longer than its timeout of {timeout:g} s.", step=record.name
            )
            record.timer = self.engine.loop.call_later(timeout, self.expire, error)

    def _disarm(self, record: StepRecord) -> None:
        if record.timer is not None:
            record.timer.cancel()
            record.timer = None

    def _on_loop(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending, nothing runs on it
            self.engine.loop.call_soon_threadsafe(call)


class _StepCall:
    """While entered, a step runs. A class, because a generator's context manager costs five times as much."""

    __slots__ = ("_calls", "_context", "_name", "_record", "_span", "_spec", "_started", "_timeout", "_token")

    def __init__(self, calls: StepCalls, name: str, spec: StepSpec, timeout: float | None) -> None:
        self._calls = calls
        self._name = name
        self._spec = spec
        self._timeout = timeout

    @property
    def record(self) -> StepRecord:
        """The call's record, once entered."""
        return self._record

    def __enter__(self) -> StepContext:
        self._record, self._context = self._calls.enter_step(self._name, self._spec, self._timeout)
        self._token = current_scope.set(self._context)
        tracing = self._calls.engine.tracing
        self._span = None if tracing is None else step_span(tracing, self._record, self._calls)
        self._started = time.perf_counter()
        return self._context

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        seconds = time.perf_counter() - self._started
        try:
            self._calls.exit_step(self._record, self._context, error, seconds)
        finally:
            if self._span is not None:
                end_step_span(self._span, self._record, error)
            current_scope.reset(self._token)


def _yields_of(context: StepContext) -> tuple[list[Any], Callable[[Any], object]]:
    """The list of what a generator step yields, and what adds to it."""
    if context.live is not None:
        return context.live.values, context.live.put
    drained: list[Any] = Streamed()
    return drained, drained.append


def _name_shown(spec: StepSpec, index: int) -> str | None:
    """The name that a step gives to its output ``index``, if it has one of its own."""
    outputs = spec.definition.outputs
    name = outputs[index].name if index < len(outputs) else "output"
    return None if name == "output" else name
