"""Keeps what runs write apart: ``print`` and ``logging`` of a step become ``log`` events of its own job.

The current scope tells which job a line belongs to, so two runs in threads or tasks never mix. Lines still go where
they would have gone, with masked values taken out; with ``Capture(logs=False)`` they go nowhere.

While a runtime is entered, these are replaced in the whole process, and do as before for all code outside its steps:

- ``sys.stdout`` and ``sys.stderr``. Printed lines have the loggers ``print`` and ``stderr``. What a process started by
  a step or a C library writes, and what takes the streams by number or keeps them from before, is not seen.
- ``logging.Logger.callHandlers``, which every record of every logger passes, whatever handlers there are, now or
  later. Records of pipeserve itself are the service's own: they go to the process's log, and to no job's.
- ``threading.Thread.start`` and ``ThreadPoolExecutor.submit``: before Python 3.14's option for it, a thread does not
  have the context of the code that started it. A thread or call that a step starts does, then, with all its context
  variables. A thread that serves many callers belongs to the step that started it, unless it is an executor's.
"""

from __future__ import annotations

import contextvars
import copy
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial, wraps
from typing import Any, Protocol, TextIO, cast

from pipeserve.runtime.capture.patches import Patch
from pipeserve.runtime.capture.veil import Veil
from pipeserve.sdk.context import RunControl, StepContext, current_scope, run_of
from pipeserve.sdk.lines import shortened

_OWN_LOGGERS = ("pipeserve", "pipeserve_api", "pipeserve_worker")
_PLAIN_RECORD = frozenset(vars(logging.makeLogRecord({})))


class RoutedRun(RunControl, Protocol):
    """What a run has whose steps' writing is routed."""

    @property
    def log_routing(self) -> LogRouting | None:
        """By whom; None: by nobody."""
        ...

    @property
    def veil(self) -> Veil | None:
        """What must be taken out of it."""
        ...

    @property
    def followed(self) -> bool:
        """Whether anybody is told of its lines."""
        ...

    @property
    def log_limit(self) -> int:
        """Bytes of them that are kept."""
        ...

    @property
    def draws(self) -> bool:
        """Whether what its steps show is kept."""
        ...


class LogRouting:
    """While entered, what steps of its runtime write goes to their jobs, or nowhere. See the module."""

    def __init__(self, *, keep: bool = True) -> None:
        """``keep``: False drops it, also for the process's own output and log."""
        self.keep = keep
        self._entered = False
        self._stack = ExitStack()
        self._handling = threading.local()  # this thread is in a logging handler

    def __enter__(self) -> LogRouting:
        enter = self._stack.enter_context
        for name, logger in (("stdout", "print"), ("stderr", "stderr")):
            if getattr(sys, name) is not None:  # a process may have none
                enter(Patch(sys, name, partial(_RoutedStream, routing=self, logger=logger)))
        enter(Patch(logging.Logger, "callHandlers", self._route_records))
        enter(Patch(threading.Thread, "start", self._start_in_context))
        enter(Patch(ThreadPoolExecutor, "submit", self._submit_in_context))
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        self._stack.close()

    def context(self) -> StepContext | None:
        """The step whose code is running here, if its run reports through this routing."""
        scope = current_scope.get()
        if scope is None or not self._entered or not isinstance(scope, StepContext):
            return None
        return scope if getattr(run_of(scope), "log_routing", None) is self else None

    def write(self, text: str, logger: str, stream: TextIO) -> int:
        """Take what is written to a stream."""
        context = self.context()
        if context is None or getattr(self._handling, "now", False):
            return stream.write(text)
        if not self.keep:
            return len(text)
        if context.silenced:
            context.skip(text)
            return stream.write(text)
        run = cast(RoutedRun, run_of(context))
        veil = run.veil
        if veil is None:
            if run.followed:
                context.print(text, logger)
            return stream.write(text)

        def pass_on(line: str) -> None:
            text, _ = shortened(line)
            veil.when_known(context.step_name, lambda: stream.write(veil.masks.hide_cut(text) + "\n"))

        context.print(text, logger, pass_on)
        return len(text)

    # ---- what stands in the place of others' functions

    def _route_records(self, call_handlers: Callable[[logging.Logger, logging.LogRecord], None]) -> Any:
        @wraps(call_handlers)
        def routed(logger: logging.Logger, record: logging.LogRecord) -> None:
            handling = getattr(self._handling, "now", False)
            context = None if handling else self.context()
            if context is None:
                call_handlers(logger, record)
                return
            run = cast(RoutedRun, run_of(context))
            self._handling.now = True  # what handlers write is the record once more, and reporting may log in turn
            try:
                self._take_record(context, run.veil, record, partial(call_handlers, logger))
            finally:
                self._handling.now = False

        return routed

    def _take_record(
        self,
        context: StepContext,
        veil: Veil | None,
        record: logging.LogRecord,
        handle: Callable[[logging.LogRecord], None],
    ) -> None:
        own = record.name.partition(".")[0] in _OWN_LOGGERS
        kept = None
        if not own:
            if not self.keep:
                return
            kept = context.log(record.levelname.lower(), _words_of(record), record.name)
        if veil is None:
            handle(record)
        elif kept is not False:
            # Made now: the arguments of the message may change before it is told.
            words, traceback = _message_of(record), _traceback_of(record)
            here = contextvars.copy_context()  # whoever makes it known may be elsewhere; handlers look where they are
            veil.when_known(context.step_name, lambda: here.run(handle, _hidden(record, words, traceback, veil)))

    def _start_in_context(self, start: Callable[[threading.Thread], None]) -> Any:
        @wraps(start)
        def started(thread: threading.Thread) -> None:
            if self.context() is not None and getattr(thread, "_context", None) is None:
                context, run = contextvars.copy_context(), thread.run
                vars(thread)["run"] = lambda: context.run(_run_thread, thread, run)
            start(thread)

        return started

    def _submit_in_context(self, submit: Callable[..., Future[Any]]) -> Any:
        @wraps(submit)
        def submitted(pool: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            if self.context() is None:
                return submit(pool, fn, *args, **kwargs)
            call = partial(contextvars.copy_context().run, fn, *args, **kwargs)
            # Without a scope: a thread that the pool starts for this serves others after.
            token = current_scope.set(None)
            try:
                return submit(pool, call)
            finally:
                current_scope.reset(token)

        return submitted


def _run_thread(thread: threading.Thread, run: Callable[[], None]) -> None:
    """``thread``'s own ``run``; an error that ends it is told here, in the step's context."""
    vars(thread).pop("run", None)  # it refers to the thread
    try:
        run()
    except BaseException:
        kind, error, trace = sys.exc_info()
        assert kind is not None
        threading.excepthook(threading.ExceptHookArgs((kind, error, trace, thread)))


def _words_of(record: logging.LogRecord) -> str:
    """All that a record says, as one text."""
    traceback = _traceback_of(record)
    return _message_of(record) if traceback is None else f"{_message_of(record)}\n{traceback}"


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # arguments that don't fit: a handler tells the author so
        return f"{record.msg} ({type(error).__name__}: {error})"


def _traceback_of(record: logging.LogRecord) -> str | None:
    return logging.Formatter().formatException(record.exc_info) if record.exc_info else record.exc_text


def _hidden(record: logging.LogRecord, words: str, traceback: str | None, veil: Veil) -> logging.LogRecord:
    """``record`` as handlers may see it."""
    hide = veil.masks.hide
    hidden = copy.copy(record)
    hidden.msg, hidden.args = hide(words), ()
    hidden.exc_info, hidden.exc_text = None, None if traceback is None else hide(traceback)
    hidden.stack_info = None if record.stack_info is None else hide(record.stack_info)
    for name in vars(record).keys() - _PLAIN_RECORD:
        text = str(vars(record)[name])
        if (safe := hide(text)) != text:
            vars(hidden)[name] = safe
    return hidden


class _RoutedStream(io.TextIOBase):
    """A standard stream, as the process has it; what steps write to it is routed."""

    def __init__(self, stream: TextIO, routing: LogRouting, logger: str) -> None:
        self._stream = stream
        self._routing = routing
        self._logger = logger

    def write(self, text: str, /) -> int:
        return self._routing.write(text, self._logger, self._stream)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def buffer(self) -> Any:
        return _RoutedBuffer(self, self._routing, self._stream.buffer)

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)  # reconfigure, name, mode …: as without a service


class _RoutedBuffer:
    """The bytes below a standard stream; those that steps write go through the stream as text."""

    def __init__(self, stream: _RoutedStream, routing: LogRouting, buffer: Any) -> None:
        self._stream = stream
        self._routing = routing
        self._buffer = buffer

    def write(self, data: bytes, /) -> int:
        if self._routing.context() is None:
            return self._buffer.write(data)
        self._stream.write(bytes(data).decode(self._stream.encoding or "utf-8", "replace"))
        return len(data)

    def writelines(self, lines: Iterable[bytes], /) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)
