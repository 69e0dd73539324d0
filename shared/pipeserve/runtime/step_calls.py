"""One step call of a run: its context, its events, its record, and how it ends.

This is the part of a run that its steps see (:class:`~pipeserve.sdk.context.RunControl`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from pipeserve.errors import InvocationError, Problem, StepFailedError, TimedOutError
from pipeserve.events import Event, EventType
from pipeserve.jobs import JobStatus
from pipeserve.runtime.encoding import NotJsonError, to_json
from pipeserve.runtime.failures import cause_of, problem_of, traceback_of, words_of
from pipeserve.runtime.isolation import LogRouting
from pipeserve.runtime.run import EventSink, RunRequest, RunStopped, StepRecord
from pipeserve.runtime.threads import ThreadPool
from pipeserve.sdk.context import StepContext, current_scope
from pipeserve.sdk.definition import Mode

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
        self._deadline = math.inf if request.timeout is None else time.monotonic() + request.timeout

    @abstractmethod
    def _expire(self, error: TimedOutError) -> None:
        """A timeout is over: stop the run; on the loop."""

    # ---- RunControl

    @property
    def cancelled(self) -> bool:
        """Whether the run should stop, for whatever reason."""
        return self._stop is not None

    def remaining(self) -> float:
        """Seconds to the run's deadline."""
        return self._deadline - time.monotonic()

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
    ) -> None:
        """Tell whoever follows. A value without a JSON form is told as null, with its type: telling changes nothing."""
        if self._sink is None or self._over:
            return
        if event_type in (EventType.OUTPUT, EventType.METADATA):
            data = _told(data)  # now: the step may change the value after
        self._sink.send(
            Event(event_type, self.job_id, self.attempt, time.time(), step_name, level, message, data, error)
        )

    # ---- calls

    def run_sync(self, name: str, mode: Mode, timeout: float | None, call: Callable[[], Any]) -> Any:
        """The value of one sync step, run here and now. Raises what the step raises, or RunStopped."""
        with _StepCall(self, name, timeout) as context:
            value = call()
            return self.drain(value, context) if mode is Mode.GENERATOR else value

    async def run_async(self, name: str, mode: Mode, timeout: float | None, call: Callable[[], Any]) -> Any:
        """The value of one async step, run in this task. Raises what the step raises, or RunStopped."""
        with _StepCall(self, name, timeout) as context, self.cancellable(name):
            return await self.drain_async(call(), context) if mode is Mode.ASYNC_GENERATOR else await call()

    def drain(self, values: Iterable[Any], context: StepContext) -> list[Any]:
        """All that a generator yields, each sent as an ``output`` event."""
        drained: list[Any] = []
        try:
            for value in values:
                context.emit(value)
                drained.append(value)
        finally:
            if isinstance(values, Generator):  # its `finally` belongs to the step, not to garbage collection
                values.close()
        return drained

    async def drain_async(self, values: AsyncIterator[Any], context: StepContext) -> list[Any]:
        """The same for an async generator."""
        drained: list[Any] = []
        try:
            async for value in values:
                context.emit(value)
                drained.append(value)
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

    def enter_step(self, name: str, timeout: float | None) -> tuple[StepRecord, StepContext]:
        """A step begins: its record, and the context in which it runs."""
        self.checkpoint()
        record = StepRecord(name, time.time())
        self.steps.append(record)
        self.report(EventType.STEP_STARTED, name, {})
        if timeout is not None:
            self._on_loop(lambda: self._arm(record, timeout))
        return record, StepContext(self, name, timeout)

    def exit_step(self, record: StepRecord, context: StepContext, error: BaseException | None, seconds: float) -> None:
        """A step has ended, with ``error`` or without."""
        context.end_print()
        record.duration = seconds
        if error is None:
            record.status = "completed"
            self.report(EventType.STEP_COMPLETED, record.name, {"cached": record.cached, "duration": seconds})
        else:
            self._failed(record, error)
        if context.bounded:
            self._on_loop(lambda: self._disarm(record))

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
        token = current_scope.set(None)  # what is logged in a step's scope would be an event of the job
        try:
            _log.error("step %r of job %s failed\n%s", step, self.job_id, text.rstrip())
        finally:
            current_scope.reset(token)

    def problem(self, error: BaseException, step: str | None) -> Problem:
        """The problem document of an error that ended a step or the body."""
        return problem_of(
            error,
            job_id=self.job_id,
            step=step,
            pipeline_name=self.engine.pipeline_name,
            expose_tracebacks=self.engine.expose_tracebacks,
        )

    # ---- a step's own timeout

    def _arm(self, record: StepRecord, timeout: float) -> None:
        if record.status == "running" and not self._over:
            error = TimedOutError(
                f"step {record.name!r} took longer than its timeout of {timeout:g} s.", step=record.name
            )
            record.timer = self.engine.loop.call_later(timeout, self._expire, error)

    def _disarm(self, record: StepRecord) -> None:
        if record.timer is not None:
            record.timer.cancel()
            record.timer = None

    def _on_loop(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending, nothing runs on it
            self.engine.loop.call_soon_threadsafe(call)


class _StepCall:
    """While entered, a step runs. A class, because a generator's context manager costs five times as much."""

    __slots__ = ("_calls", "_context", "_name", "_record", "_started", "_timeout", "_token")

    def __init__(self, calls: StepCalls, name: str, timeout: float | None) -> None:
        self._calls = calls
        self._name = name
        self._timeout = timeout

    def __enter__(self) -> StepContext:
        self._record, self._context = self._calls.enter_step(self._name, self._timeout)
        self._token = current_scope.set(self._context)
        self._started = time.perf_counter()
        return self._context

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        seconds = time.perf_counter() - self._started
        try:
            self._calls.exit_step(self._record, self._context, error, seconds)
        finally:
            current_scope.reset(self._token)


def _told(data: dict[str, Any]) -> orjson.Fragment:
    """``data`` as JSON, with null for each member that has no JSON form, and what type it was."""
    try:
        return orjson.Fragment(to_json(data))
    except NotJsonError:
        told: dict[str, Any] = {}
        types: dict[str, str] = {}
        for name, value in data.items():
            try:
                told[name] = orjson.Fragment(to_json(value))
            except NotJsonError as error:
                told[name], types[name] = None, error.type_name
        return orjson.Fragment(to_json({**told, "not_json": types}))
