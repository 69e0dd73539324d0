"""One run: its life from start to result, whatever kind of pipeline it is.

Work happens in *units*: a chain of sync steps in one pool thread, or a chain of async steps in one task. The run ends
when no unit is left. A stop (cancel, timeout, a failed branch) cancels tasks at once and threads at their next
checkpoint: Python threads can't be killed. A thread that passes its timeout and its grace without a checkpoint is
abandoned: the run ends, and what that thread still reports is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import orjson

from pipeserve.errors import JobCanceledError, Problem, ProblemError, StepFailedError, TimedOutError
from pipeserve.events import Event, EventType
from pipeserve.jobs import JobStatus
from pipeserve.runtime.encoding import NotJsonError, to_json
from pipeserve.runtime.isolation import LogRouting
from pipeserve.runtime.run import EventSink, RunRequest, RunResult, RunStopped, StepRecord
from pipeserve.runtime.threads import ThreadPool
from pipeserve.sdk.context import StepContext, current_scope
from pipeserve.sdk.definition import Mode


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


@dataclass(frozen=True, slots=True)
class _Stop:
    status: JobStatus
    error: Problem


class Run(ABC):
    """One run that was started. A :class:`~pipeserve.sdk.context.RunControl` for its steps."""

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
        self._stop: _Stop | None = None
        self._ending = False
        self._settled = False
        self._units = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._unit_tasks: set[asyncio.Task[None]] = set()  # asyncio itself keeps only weak references
        self._timers: list[asyncio.TimerHandle] = []
        self._result: asyncio.Future[RunResult] = engine.loop.create_future()
        self._context = contextvars.copy_context()
        self._started = time.perf_counter()
        self._deadline = math.inf if request.timeout is None else time.monotonic() + request.timeout

    # ---- for the one who started it

    @property
    def done(self) -> bool:
        """Whether :meth:`wait` returns at once."""
        return self._result.done()

    @property
    def result(self) -> RunResult | None:
        """How the run ended; None while it runs."""
        return self._result.result() if self._result.done() else None

    async def wait(self) -> RunResult:
        """How the run ended. Never raises for what the pipeline did; cancelling the waiter leaves the run alone."""
        return await asyncio.shield(self._result)

    def when_done(self, callback: Callable[[Run], object]) -> None:
        """Call ``callback`` with this run, on the loop, when it has ended."""
        self._result.add_done_callback(lambda _: callback(self))

    def cancel(self, reason: str | None = None) -> None:
        """Ask the run to stop; from any thread, any number of times."""
        detail = f"The job was canceled: {reason}" if reason else None
        self._stop_with(JobStatus.CANCELED, JobCanceledError(detail))

    def start(self) -> None:
        """Begin; on the loop."""
        self.report(
            EventType.PIPELINE_STARTED,
            None,
            {"pipeline_name": self.engine.pipeline_name, "parameters_applied": self.request.parameters.applied},
        )
        if self.request.timeout is not None:
            detail = f"The run took longer than its timeout of {self.request.timeout:g} s."
            self._arm(self.request.timeout, TimedOutError(detail))
        self._begin()

    # ---- what a pipeline's kind adds

    @abstractmethod
    def _begin(self) -> None:
        """Start the first units."""

    @abstractmethod
    def _outputs(self) -> Iterable[tuple[str, str | None, Any]]:
        """After completion: name, step and value of each output."""

    @abstractmethod
    def _tap(self, tap: str) -> tuple[str | None, Any]:
        """After completion: step and value of a tap."""

    # ---- RunControl, for the steps

    @property
    def cancelled(self) -> bool:
        """Whether the run should stop."""
        return self._stop is not None

    def remaining(self) -> float:
        """Seconds to the run's deadline."""
        return self._deadline - time.monotonic()

    def checkpoint(self) -> None:
        """Raise RunStopped, if the run must stop now."""
        if self._stop is not None:
            raise RunStopped

    def report(
        self,
        event_type: EventType,
        step_name: str | None,
        data: Any,
        *,
        level: str | None = None,
        message: str | None = None,
    ) -> None:
        """Tell whoever follows. Raises NotJsonError for an emitted value that has no JSON form."""
        if self._sink is None or self._settled:
            return
        if event_type in (EventType.OUTPUT, EventType.METADATA):
            data = orjson.Fragment(to_json(data))  # now: the step may change the value after
        self._sink.send(Event(event_type, self.job_id, self.attempt, time.time(), step_name, level, message, data))

    # ---- one step call

    def run_sync(self, name: str, mode: Mode, timeout: float | None, call: Callable[[], Any]) -> Any:
        """The value of one sync step, run here and now. Raises what the step raises, or RunStopped."""
        record, context = self._enter_step(name, timeout)
        token = current_scope.set(context)
        try:
            value = call()
            if mode is Mode.GENERATOR:
                value = self._drain(value, context)
        except BaseException as error:
            context.end_print()
            self._step_failed(record, error)
            raise
        finally:
            current_scope.reset(token)
        self._step_completed(record, context)
        return value

    async def run_async(self, name: str, mode: Mode, timeout: float | None, call: Callable[[], Any]) -> Any:
        """The value of one async step, run in this task. Raises what the step raises, or RunStopped."""
        record, context = self._enter_step(name, timeout)
        token = current_scope.set(context)
        try:
            with self._cancellable():
                value = await self._drain_async(call(), context) if mode is Mode.ASYNC_GENERATOR else await call()
        except asyncio.CancelledError:
            context.end_print()
            if self._stop is None:  # cancelled from within: the step's own doing
                error = StepFailedError(f"step {name!r} failed: it was cancelled by its own code", step=name)
                self._step_failed(record, error)
                raise error from None
            self._step_failed(record, RunStopped())
            raise RunStopped from None
        except BaseException as error:
            context.end_print()
            self._step_failed(record, error)
            raise
        finally:
            current_scope.reset(token)
        self._step_completed(record, context)
        return value

    @contextlib.contextmanager
    def _cancellable(self) -> Any:
        """While entered, a stop cancels the current task."""
        task = asyncio.current_task()
        assert task is not None
        if task in self._tasks:  # a step awaited by a dynamic body, in the body's own task
            yield
            return
        self._tasks.add(task)
        try:
            self.checkpoint()
            yield
        finally:
            self._tasks.discard(task)

    def _drain(self, values: Iterable[Any], context: StepContext) -> list[Any]:
        drained: list[Any] = []
        for value in values:
            context.emit(value)
            drained.append(value)
        return drained

    async def _drain_async(self, values: AsyncIterator[Any], context: StepContext) -> list[Any]:
        drained: list[Any] = []
        async for value in values:
            context.emit(value)
            drained.append(value)
        return drained

    def _enter_step(self, name: str, timeout: float | None) -> tuple[StepRecord, StepContext]:
        self.checkpoint()
        record = StepRecord(name, time.time())
        self.steps.append(record)
        self.report(EventType.STEP_STARTED, name, {})
        if timeout is not None:
            error = TimedOutError(f"step {name!r} took longer than its timeout of {timeout:g} s.", step=name)
            self.engine.loop.call_soon_threadsafe(self._arm, timeout, error, record)
        return record, StepContext(self, name, timeout)

    def _step_completed(self, record: StepRecord, context: StepContext) -> None:
        context.end_print()
        record.duration = time.time() - record.started_at
        record.status = "completed"
        self.report(EventType.STEP_COMPLETED, record.name, {"cached": record.cached, "duration": record.duration})

    def _step_failed(self, record: StepRecord, error: BaseException) -> None:
        record.duration = time.time() - record.started_at
        if isinstance(error, RunStopped):
            stop = self._stop
            record.status = stop.status.value if stop and stop.status is not JobStatus.FAILED else "canceled"
            return
        record.status = "failed"
        problem = self._problem(error, record.name)
        if not isinstance(error, ProblemError):
            self.report(
                EventType.LOG,
                record.name,
                {"logger": "traceback"},
                level="error",
                message="".join(traceback.format_exception(error)),
            )
        if self._sink is not None and not self._settled:
            self._sink.send(
                Event(
                    EventType.STEP_FAILED,
                    self.job_id,
                    self.attempt,
                    step_name=record.name,
                    level="error",
                    message=problem.detail,
                    data={"duration": record.duration},
                    error=problem,
                )
            )

    def _problem(self, error: BaseException, step: str | None) -> Problem:
        if isinstance(error, ProblemError):
            problem = error.problem(job_id=self.job_id)
            # A step's own answer keeps its words; it only learns where it came from.
            return problem if problem.step or step is None else problem.model_copy(update={"step": step})
        where = f"step {step!r}" if step else f"pipeline {self.engine.pipeline_name!r}"
        if isinstance(error, NotJsonError):
            detail = f"{where} failed: {error}"
        else:
            detail = f"{where} failed: {type(error).__name__}: {error}"
        if self.engine.expose_tracebacks:
            detail += "\n" + "".join(traceback.format_exception(error))
        return StepFailedError(detail, step=step).problem(job_id=self.job_id)

    # ---- stopping

    def fail(self, error: BaseException, step: str | None) -> None:
        """End the run with ``error``; its other branches stop."""
        if isinstance(error, RunStopped):
            return
        self._stop_with_problem(JobStatus.FAILED, self._problem(error, step))

    def _stop_with(self, status: JobStatus, error: ProblemError) -> None:
        self._stop_with_problem(status, error.problem(job_id=self.job_id))

    def _stop_with_problem(self, status: JobStatus, problem: Problem) -> None:
        with self._lock:
            if self._stop is not None or self._ending:
                return
            self._stop = _Stop(status, problem)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending, nothing runs on it
            self.engine.loop.call_soon_threadsafe(self._cancel_tasks)

    def _cancel_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._stop is not None and self._stop.status is JobStatus.TIMED_OUT:
            self._timers.append(self.engine.loop.call_later(self.engine.timeout_grace, self._settle))

    def _arm(self, seconds: float, error: TimedOutError, record: StepRecord | None = None) -> None:
        def expire() -> None:
            if record is None or record.status == "running":
                self._stop_with(JobStatus.TIMED_OUT, error)

        if not self._settled:
            self._timers.append(self.engine.loop.call_later(seconds, expire))

    # ---- units

    def spawn_thread(self, unit: Callable[[], None]) -> None:
        """Run ``unit`` in a pool thread; the caller has counted it."""
        context = self._context.copy()
        self.engine.threads.submit(lambda: context.run(unit))

    def spawn_task(self, unit: Callable[[], Awaitable[None]]) -> None:
        """Run ``unit`` as a task, from any thread; the caller has counted it."""

        def start() -> None:
            async def run_unit() -> None:
                await unit()

            task = asyncio.create_task(run_unit(), context=self._context.copy())
            self._unit_tasks.add(task)
            task.add_done_callback(self._unit_tasks.discard)

        self.engine.loop.call_soon_threadsafe(start)

    def add_units(self, count: int) -> None:
        """Count units that begin (or, negative, have ended). The last to end settles the run."""
        with self._lock:
            self._units += count
            last = self._units == 0
        if last:
            self._settle()

    def _settle(self) -> None:
        with self._lock:
            if self._settled:
                return
            stop = self._stop
            self._ending = True  # from here on nothing can stop it: encoding is the last of the work
        result = self._completed() if stop is None else self._stopped(stop)
        with self._lock:
            if self._settled:
                return
            self._settled = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.engine.loop.call_soon_threadsafe(self._resolve, result)

    def _resolve(self, result: RunResult) -> None:
        for timer in self._timers:
            timer.cancel()
        if not self._result.done():
            self._result.set_result(result)

    def _stopped(self, stop: _Stop) -> RunResult:
        # Copies: an abandoned thread may still write to its record.
        steps = [
            replace(record, status=stop.status.value) if record.status == "running" else record for record in self.steps
        ]
        return RunResult(
            status=stop.status,
            execution_time=time.perf_counter() - self._started,
            error=stop.error,
            steps=steps,
            applied=self.request.parameters.applied,
        )

    def _completed(self) -> RunResult:
        outputs: dict[str, Any] = {}
        encoded: dict[str, orjson.Fragment] = {}
        taps: dict[str, orjson.Fragment] = {}
        step: str | None = None
        what = ""
        try:
            for name, source, value in self._outputs():
                step, what = source, f"output {name!r}"
                outputs[name] = value
                encoded[name] = orjson.Fragment(to_json(value))
            for tap in self.request.taps:
                what = f"tap {tap!r}"
                step, value = self._tap(tap)
                taps[tap] = orjson.Fragment(to_json(value))
        except NotJsonError as error:
            where = f"step {step!r}" if step else f"pipeline {self.engine.pipeline_name!r}"
            failed = StepFailedError(f"{where}: {what} can't be answered: {error}", step=step)
            return self._stopped(_Stop(JobStatus.FAILED, failed.problem(job_id=self.job_id)))
        except Exception as error:
            return self._stopped(_Stop(JobStatus.FAILED, self._problem(error, step)))
        return RunResult(
            status=JobStatus.COMPLETED,
            execution_time=time.perf_counter() - self._started,
            outputs=outputs,
            outputs_json=orjson.dumps(encoded),
            taps_json=orjson.dumps(taps) if taps else b"{}",
            steps=self.steps,
            applied=self.request.parameters.applied,
        )
