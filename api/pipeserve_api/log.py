"""The service's own log: lines on stderr. What steps print or log belongs to their jobs and is not written here.

The modules use the standard library's loggers, so that a program which embeds the service keeps its own log; only the
process that *is* the service renders them with structlog.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO, cast

import structlog
from structlog.typing import Processor

from pipeserve.events import rfc3339

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the rest was given as ``extra``."""


def configure_logging(level: str, *, stream: TextIO | None = None) -> None:
    """Send this process's log to ``stream`` (default: stderr). Once per process, by its composition root."""
    output = sys.stderr if stream is None else stream
    on_terminal = output.isatty()
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        StructuredFormatter(
            # Draws tracebacks by itself; plain ones, because the pretty ones show local variables, which are secrets.
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
            if on_terminal
            else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False),
            tracebacks=not on_terminal,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.getLevelNamesMapping().get(level.upper(), logging.INFO))
    # uvicorn tells of every start and stop at info; the service says the same in one line.
    logging.getLogger("uvicorn").setLevel(max(root.level, logging.WARNING))


class StructuredFormatter(logging.Formatter):
    """Renders records with a structlog renderer.

    structlog's own ``ProcessorFormatter`` does the same for twice the time, and each call of the service is a line.
    """

    def __init__(self, render: Processor, *, tracebacks: bool) -> None:
        super().__init__()
        self._render = render
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """One line, or more for a traceback."""
        line: dict[str, Any] = {
            "timestamp": rfc3339(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        line.update((name, value) for name, value in vars(record).items() if name not in _OWN)
        if record.exc_info:
            if self._tracebacks:
                line["exception"] = self.formatException(record.exc_info)
            else:
                line["exc_info"] = record.exc_info
        return cast(str, self._render(None, record.levelname, line))
