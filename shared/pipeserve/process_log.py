"""A service process's own log: lines on stderr, as ``key=value`` for machines or in colour on a terminal.

What the steps of a run print and log stays with its job (``pipeserve.runtime.capture.isolation``); it also goes where
it would have gone without a service, so ``logging`` in a step is seen here too.

Modules use the standard library's loggers, with ``extra=``, or a bound logger of :func:`get_log`. Both end in the root
logger, so a program that embeds a service keeps its own log; only a process that *is* the service configures it.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from pipeserve.events import rfc3339

Log = FilteringBoundLogger

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
    # They tell at info what the service says in its own words: uvicorn each start and stop, arq each job twice.
    for talkative in ("uvicorn", "arq"):
        logging.getLogger(talkative).setLevel(max(root.level, logging.WARNING))


def get_log(name: str, **bound: object) -> Log:
    """The logger ``name``, which puts ``bound`` on each of its lines."""
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return cast(Log, logger.bind(**bound))


class StructuredFormatter(logging.Formatter):
    """Renders a record, with its ``extra``, with a structlog renderer."""

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
        elif record.exc_text:  # drawn already: with its secrets masked, say
            line["exception"] = record.exc_text
        return cast(str, self._render(None, record.levelname, line))
