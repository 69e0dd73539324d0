"""Keeps what runs write apart: ``print`` and ``logging`` of a step become ``log`` events of its own job.

The current scope tells which job a line belongs to, so two runs in threads or tasks never mix. Lines still go where
they would have gone.
"""

from __future__ import annotations

import io
import logging
import sys
from contextvars import Token
from typing import Any, TextIO

from pipeserve.sdk.context import Scope, StepContext, current_scope, run_of


class LogRouting:
    """While entered, standard output and the root logger also report to the run in whose context they are used."""

    def __init__(self) -> None:
        self._stdout: _RoutedStream | None = None
        self._handler = _RoutedHandler(self)

    def __enter__(self) -> LogRouting:
        self._stdout = _RoutedStream(sys.stdout, self)
        sys.stdout = self._stdout
        logging.getLogger().addHandler(self._handler)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self._handler)
        assert self._stdout is not None
        self._stdout.routing = None  # if another wraps it by now, it only passes text on
        if sys.stdout is self._stdout:
            sys.stdout = self._stdout.stream

    def context(self) -> StepContext | None:
        """The step whose code is running here, if its run reports through this routing."""
        scope = current_scope.get()
        if isinstance(scope, StepContext) and getattr(run_of(scope), "log_routing", None) is self:
            return scope
        return None


class _RoutedStream(io.TextIOBase):
    def __init__(self, stream: TextIO, routing: LogRouting) -> None:
        self.stream = stream
        self.routing: LogRouting | None = routing

    def write(self, text: str, /) -> int:
        if self.routing is not None and (context := self.routing.context()) is not None:
            context.print(text)
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    @property
    def buffer(self) -> Any:
        return self.stream.buffer

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)  # reconfigure, name, mode …: as without a service


class _RoutedHandler(logging.Handler):
    def __init__(self, routing: LogRouting) -> None:
        super().__init__()
        self._routing = routing

    def emit(self, record: logging.LogRecord) -> None:
        # Where nobody has configured logging, this handler would silence logging's own last resort.
        last_resort = logging.lastResort
        if last_resort and record.levelno >= last_resort.level and logging.getLogger().handlers == [self]:
            last_resort.handle(record)
        context = self._routing.context()
        if context is None:
            return
        # Reporting may log in turn (a sink in trouble): without a scope that can't come back here.
        token: Token[Scope | None] = current_scope.set(None)
        try:
            message = record.getMessage()
            if record.exc_info:
                message += "\n" + logging.Formatter().formatException(record.exc_info)
            context.log(record.levelname.lower(), message, record.name)
        except Exception:
            self.handleError(record)
        finally:
            current_scope.reset(token)
