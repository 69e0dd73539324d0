"""The child's side: runs one step after the other, in its main thread, and tells the parent what they say."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import math
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any, TypeVar, cast

from pipeserve.events import EventType
from pipeserve.parent import die_with_parent
from pipeserve.runtime.capture.isolation import LogRouting
from pipeserve.runtime.capture.log_budget import LogBudget, Verdict
from pipeserve.runtime.capture.visuals import render
from pipeserve.runtime.failures import traceback_of, words_of
from pipeserve.runtime.line_fields import ContextFields
from pipeserve.runtime.processes.channel import Channel
from pipeserve.runtime.processes.messages import (
    Call,
    Failure,
    Kind,
    Report,
    Shown,
    Start,
    Unsendable,
    packed,
)
from pipeserve.runtime.processes.place import StepPlace
from pipeserve.sdk.context import StepContext, current_scope
from pipeserve.sdk.definition import Mode, PipelineDefinition
from pipeserve.sdk.local import takes_state

T = TypeVar("T")

_LOOK_SECONDS = 1.0


def main(descriptor: int, parent_pid: int) -> None:
    """Be a child of ``parent_pid``, which holds the other end of the socket ``descriptor``, until that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its children
    if not die_with_parent(parent_pid, signal.SIGKILL):
        return
    if sys.platform != "linux":
        threading.Thread(target=_die_without_parent, args=(parent_pid,), daemon=True).start()
    channel = Channel(socket.socket(fileno=descriptor))
    received = channel.read()
    if received is not None:
        start: Start = pickle.loads(received)
        with _Child(channel, start) as child:
            child.serve()


def _die_without_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_LOOK_SECONDS)
    os.killpg(0, signal.SIGKILL)


class _Child:
    """One child process, from its first call to its end."""

    def __init__(self, channel: Channel, start: Start) -> None:
        sys.argv[:] = start.argv
        _configure_logging(start)
        self._channel = channel
        self._start = start
        self._routing = LogRouting(keep=start.capture_logs)
        self._functions: dict[StepPlace, Callable[..., Any]] = {}
        self._pipeline: PipelineDefinition | None = None
        self._state: Any = None
        self._ready = False
        self._runner: asyncio.Runner | None = None
        self._stack = ExitStack()

    def __enter__(self) -> _Child:
        self._stack.enter_context(self._routing)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            hook: Callable[..., Any] | None = None if self._pipeline is None else self._pipeline.on_cleanup
            if hook is not None:
                self._settled(hook(self._state) if takes_state(hook) else hook())
        finally:
            if self._runner is not None:
                self._runner.close()
            self._stack.close()

    def serve(self) -> None:
        """Answer calls until the parent closes the socket."""
        while (call := self._channel.read()) is not None and (arguments := self._channel.read()) is not None:
            # In a context of its own: what a step sets is no business of the next one's request.
            contextvars.copy_context().run(self._answer, pickle.loads(call), arguments)

    def _answer(self, call: Call, arguments: bytearray) -> None:
        run: _ChildRun | None = None
        try:
            function = self._function(call.place)
            self._prepare()
            args, kwargs = pickle.loads(arguments)
            del arguments[:]
            self._channel.send(Kind.BEGIN, b"")
            run = _ChildRun(call, self._channel, self._state, self._routing)
            value = self._value(run, Mode(call.mode), lambda: function(*args, **kwargs))
            kind, body = Kind.VALUE, _packed_result(value, "its value")
        except BaseException as error:  # a step may raise anything, SystemExit included
            kind, body = Kind.ERROR, packed(_failure(error))
        if run is not None:
            run.over = True  # threads that it left behind have nobody to tell any more
        _flush()
        self._channel.send(kind, body)

    def _function(self, place: StepPlace) -> Callable[..., Any]:
        function = self._functions.get(place)
        if function is None:
            function = self._functions[place] = place.find()
        return function

    def _prepare(self) -> None:
        if not self._ready:
            pipeline = self._start.pipeline.find()
            if pipeline is not None and pipeline.on_init is not None:
                self._state = self._settled(pipeline.on_init())
            self._pipeline = pipeline
            self._ready = True

    def _value(self, run: _ChildRun, mode: Mode, call: Callable[[], Any]) -> Any:
        context = StepContext(run, run.step_name)
        token = current_scope.set(context)
        try:
            match mode:
                case Mode.SYNC:
                    return call()
                case Mode.ASYNC:
                    return self._run(call())
                case Mode.GENERATOR:
                    return _send_each(call(), run)
                case Mode.ASYNC_GENERATOR:
                    return self._run(_send_each_async(call(), run))
        finally:
            context.end_print()
            run.end_logs()
            current_scope.reset(token)

    def _settled(self, result: Any) -> Any:
        return self._run(result) if inspect.isawaitable(result) else result

    def _run(self, awaitable: Awaitable[T]) -> T:
        # One loop for the life of the process: what an async on_init has opened belongs to its loop.
        if self._runner is None:
            self._runner = asyncio.Runner()

        async def wait() -> T:
            return await awaitable

        return self._runner.run(wait(), context=contextvars.copy_context())


class _ChildRun:
    """The run of one call, as its step sees it (a :class:`~pipeserve.sdk.context.RunControl`)."""

    cancelled = False  # a cancel kills the process

    def __init__(self, call: Call, channel: Channel, pipeline_state: Any, routing: LogRouting) -> None:
        self.job_id = call.job_id
        self.attempt = call.attempt
        self.run_name = call.run_name
        self.step_name = call.name
        self.pipeline_state = pipeline_state
        self.log_routing = routing
        self.followed = call.followed
        self.veil = _NothingHere() if call.veiled else None
        self.over = False
        self._deadline = min(call.deadline, math.inf if call.timeout is None else time.monotonic() + call.timeout)
        self._channel = channel
        self._draws = call.draws
        self._logs = LogBudget(call.log_limit)
        self._unkept = 0  # bytes of log text that the parent is not told

    def remaining(self) -> float:
        """Seconds to the deadline of the step or its run, whichever comes first."""
        return math.inf if math.isinf(self._deadline) else self._deadline - time.monotonic()

    def checkpoint(self) -> None:
        """Never stops: the process is killed instead."""

    def report(
        self,
        event_type: EventType,
        step_name: str | None,
        data: Any,
        *,
        level: str | None = None,
        message: str | None = None,
    ) -> bool | None:
        """Tell the parent, and wait while it has too much to read."""
        verdict = Verdict.KEEP
        if event_type is EventType.LOG and message is not None:
            verdict = self._logs.take(message)
            if verdict is Verdict.DROP:
                self._unkept += len(message)
                return False
        try:
            body = packed(Report(event_type.value, step_name, data, level, message))
        except Exception:  # whatever the values' own code raises: telling must not fail the step
            members = cast(dict[str, Any], data) if isinstance(data, dict) else {}
            data = {name: _sendable(value) for name, value in members.items()}
            body = packed(Report(event_type.value, step_name, data, level, message))
        self._channel.send(Kind.REPORT, body, unless=lambda: self.over)
        return None if verdict is Verdict.KEEP else False

    def end_logs(self) -> None:
        """No more comes: tell how much was not told."""
        if self._unkept:
            self.report(EventType.LOG, self.step_name, {"logger": "pipeserve", "unkept": self._unkept})

    def visualize(self, step_name: str | None, value: Any, name: str | None) -> None:
        """Draw ``value`` here, where its library and it itself are, and send the picture."""
        if not self._draws:
            return
        try:
            body = packed(Shown(render(value), name))
        except Exception as error:  # whatever the value's own code raises: showing must not fail the step
            words = f"a {type(value).__name__} could not be shown: {words_of(error)}"
            self.report(EventType.LOG, step_name, {"logger": "pipeserve"}, level="warning", message=words)
        else:
            self._channel.send(Kind.SHOW, body, unless=lambda: self.over)

    def send_yield(self, value: Any) -> None:
        """Send one item of a stream. Raises TypeError if it can't be pickled."""
        self._channel.send(Kind.YIELD, _packed_result(value, "what it yields"))


class _NothingHere:
    """In the place of a run's veil: what might have to be masked goes to the process's log by way of the parent."""

    def when_known(self, step: str | None, action: Callable[[], object]) -> None:
        """Don't."""


def _send_each(values: Iterable[Any], run: _ChildRun) -> None:
    for value in values:
        run.send_yield(value)


async def _send_each_async(values: AsyncIterable[Any], run: _ChildRun) -> None:
    async for value in values:
        run.send_yield(value)


def _sendable(value: Any) -> Any:
    try:
        packed(value)
    except Exception:  # whatever the value's own code raises
        return Unsendable(value)
    return value


def _packed_result(value: Any, what: str) -> bytes:
    try:
        return packed(value)
    except Exception as error:  # whatever the value's own code raises
        raise TypeError(f"{what} ({type(value).__name__}) can't be sent from the step's process: {error}") from error


def _failure(error: BaseException) -> Failure:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:  # the author's code is what counts
        trace = trace.tb_next
    error.__traceback__ = trace
    pickled = None
    if isinstance(error, Exception):  # SystemExit and its like would act on the parent
        try:
            pickled = packed(error)
            # Many exceptions pickle and can't be made again: their __init__ takes other arguments than they keep.
            if type(pickle.loads(pickled)) is not type(error):
                pickled = None
        except Exception:  # whatever the exception's own code raises
            pickled = None
    return Failure(pickled, type(error).__name__, words_of(error), traceback_of(error))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed by the step, or by whoever read it
            stream.flush()


def _configure_logging(start: Start) -> None:
    """As in the parent: a step's lines go to the process's log too."""
    if start.log_form is not None:
        from pipeserve.process_log import configure_logging  # needs structlog, which only services have

        configure_logging(logging.getLevelName(start.log_level), form=start.log_form, fields=ContextFields())
    else:
        logging.getLogger().setLevel(start.log_level)
