"""One run: its life from start to result, whatever kind of pipeline it is.

Work happens in *units*: a chain of sync steps in one pool thread, or a chain of async steps in one task. The run ends
when no unit is left. A stop (cancel, timeout, a failed branch) cancels tasks at once and threads at their next
checkpoint: Python threads can't be killed. A thread that goes on past the run's timeout and its grace is abandoned:
the run ends, what that thread still reports is dropped, and its place in the pool is made up for.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any

import orjson

from pipeserve.errors import JobCanceledError, Problem, ProblemError, StepFailedError, TimedOutError
from pipeserve.events import EventType
from pipeserve.jobs import JobStatus
from pipeserve.runtime.run import EventSink, RunRequest, RunResult, RunStopped
from pipeserve.runtime.step_calls import Engine, StepCalls, Stop
from pipeserve.runtime.values.encoding import NotJsonError


class Run(StepCalls):
    """One run that was started."""

    def __init__(self, engine: Engine, request: RunRequest, sink: EventSink | None) -> None:
        super().__init__(engine, request, sink)
        self._encoding = False
        self._kept = request.kept
        self._units = 0
        self._threads = 0
        self._unit_tasks: set[asyncio.Task[None]] = set()  # asyncio itself keeps only weak references
        self._timers: list[asyncio.TimerHandle] = []
        self._result: asyncio.Future[RunResult] = engine.loop.create_future()
        self._context = contextvars.copy_context()
        self._started = time.perf_counter()

    # ---- for the one who started it

    @property
    def done(self) -> bool:
        """Whether :meth:`wait` returns at once."""
        return self._result.done()

    @property
    def result(self) -> RunResult | None:
        """How the run ended; None while it runs."""
        return self._result.result() if self._result.done() else None

    @property
    def stopping(self) -> JobStatus | None:
        """What the run will end as, if it was told to stop: canceled, timed_out or failed."""
        return None if self._stop is None else self._stop.status

    async def wait(self) -> RunResult:
        """How the run ended. Never raises for what the pipeline did; cancelling the waiter leaves the run alone."""
        return await asyncio.shield(self._result)

    def keep_outputs(self) -> None:
        """The outputs go into a job's record after all. Too late, they are kept there whole."""
        self._kept = True

    def when_done(self, callback: Callable[[Run], object]) -> None:
        """Call ``callback`` with this run, on the loop, when it has ended."""
        self._result.add_done_callback(lambda _: callback(self))

    def cancel(self, reason: str | None = None) -> bool:
        """Ask the run to stop; from any thread. False: it is ending already, in whatever way."""
        error = JobCanceledError(f"The job was canceled: {reason}" if reason else None)
        return self._stop_as(JobStatus.CANCELED, error.problem(job_id=self.job_id))

    def interrupt(self, error: ProblemError) -> bool:
        """End the run as failed with ``error``, which is none of its own doing; as :meth:`cancel` otherwise."""
        return self._stop_as(JobStatus.FAILED, error.problem(job_id=self.job_id))

    def start(self) -> None:
        """Begin; on the loop."""
        applied = self.request.parameters.applied if self.engine.telling.capture.metadata else ()
        self.report(
            EventType.PIPELINE_STARTED,
            None,
            {"pipeline_name": self.engine.pipeline_name, "parameters_applied": applied},
        )
        timeout = self.request.timeout
        if timeout is not None:
            error = TimedOutError(f"The run took longer than its timeout of {timeout:g} s.")
            self._timers.append(self.engine.loop.call_later(timeout, self.expire, error))
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

    @abstractmethod
    def _forget(self) -> None:
        """Let go of every value: the run's record may live on for a while."""

    # ---- stopping

    def fail(self, error: BaseException, step: str | None) -> None:
        """End the run with ``error``; its other branches stop."""
        if not isinstance(error, RunStopped):
            self._stop_as(JobStatus.FAILED, self.problem(error, step))

    def _stop_as(self, status: JobStatus, problem: Problem) -> bool:
        with self._lock:
            if self._stop is not None or self._encoding:
                return False
            self._stop = Stop(status, problem)
        self._on_loop(self._cancel_tasks)
        return True

    def _cancel_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        with self._lock:
            callbacks = list(self._on_stop)
        for callback in callbacks:
            callback()

    def expire(self, error: TimedOutError) -> None:
        """A timeout is over: stop the run; on the loop."""
        self._stop_as(JobStatus.TIMED_OUT, error.problem(job_id=self.job_id))
        # Also where the run was stopping already: its threads get this grace, and no more.
        if not self._over:
            self._timers.append(self.engine.loop.call_later(self.engine.timeout_grace, self.abandon))

    def abandon(self) -> None:
        """Wait no longer for the threads of a run that was told to stop; on the loop."""
        if self._stop is not None:
            self._settle()

    # ---- units

    def spawn_thread(self, unit: Callable[[], None]) -> None:
        """Run ``unit`` in a pool thread, and end the unit with it; the caller has counted it."""
        context = self._context.copy()

        def work() -> None:
            with self._lock:
                self._threads += 1
            try:
                context.run(unit)
            finally:
                with self._lock:
                    self._threads -= 1
                    abandoned = self._over
                if abandoned:
                    self.engine.threads.lower(1)
                self.add_units(-1)

        self.engine.threads.submit(work)

    def spawn_task(self, unit: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``unit`` as a task, from any thread, and end the unit with it; the caller has counted it."""

        async def work() -> None:
            try:
                await unit()
            finally:
                self.add_units(-1)

        def start() -> None:
            task = asyncio.create_task(work(), context=self._context.copy())
            self._unit_tasks.add(task)
            task.add_done_callback(self._unit_tasks.discard)

        self._on_loop(start)

    def add_units(self, count: int) -> None:
        """Count units that begin (or, negative, have ended). The last to end settles the run."""
        with self._lock:
            self._units += count
            last = self._units == 0
        if last:
            self._settle()

    # ---- the end

    def _settle(self) -> None:
        with self._lock:
            if self._over:
                return
            stop = self._stop
            self._encoding = True  # from here on nothing can stop it: encoding is the last of the work
        result = self._completed() if stop is None else self._stopped(stop)
        if not self._over:
            self.teller.end()
        with self._lock:
            if self._over:
                return
            self._over = True
            abandoned = self._threads if self._units else 0
        if abandoned:
            self.engine.threads.lift(abandoned)
        self._on_loop(lambda: self._resolve(result))

    def _resolve(self, result: RunResult) -> None:
        for timer in self._timers:
            timer.cancel()
        self._forget()
        if not self._result.done():
            self._result.set_result(result)

    def _stopped(self, stop: Stop) -> RunResult:
        status = stop.status.value if stop.status is not JobStatus.FAILED else "canceled"
        return RunResult(
            status=stop.status,
            execution_time=time.perf_counter() - self._started,
            error=stop.error,
            # Copies: an abandoned thread may still write to its record.
            steps=[
                replace(record, status=status if record.status == "running" else record.status) for record in self.steps
            ],
            applied=self.request.parameters.applied,
        )

    def _completed(self) -> RunResult:
        masks = None if self.veil is None else self.veil.masks
        outputs = self.engine.outputs.of_run(self.job_id, masks, answered=self.request.answered, kept=self._kept)
        taps: dict[str, orjson.Fragment] = {}
        step: str | None = None
        what = ""
        try:
            for name, source, value in self._outputs():
                step, what = source, f"output {name!r}"
                outputs.add(name, value)
            for tap in self.request.taps:
                what = f"tap {tap!r}"
                step, value = self._tap(tap)
                taps[tap] = outputs.encode(value)
        except NotJsonError as error:
            where = f"step {step!r}" if step else f"pipeline {self.engine.pipeline_name!r}"
            failed = StepFailedError(f"{where}: {what} can't be answered: {error}", step=step)
            return self._stopped(Stop(JobStatus.FAILED, failed.problem(job_id=self.job_id)))
        except Exception as error:  # a property or item of a result may raise anything: it is the run's failure
            return self._stopped(Stop(JobStatus.FAILED, self.problem(error, step)))
        return RunResult(
            status=JobStatus.COMPLETED,
            execution_time=time.perf_counter() - self._started,
            outputs_json=outputs.answer(),
            kept=outputs.kept(),
            taps_json=orjson.dumps(taps) if taps else b"{}",
            steps=[replace(record) for record in self.steps],
            applied=self.request.parameters.applied,
        )
