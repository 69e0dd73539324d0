"""A service process's own log: lines on stderr, as ``key=value`` or JSON for machines or in colour on a terminal.

What the steps of a run print and log stays with its job (``pipeserve.runtime.capture.isolation``); it also goes where
it would have gone without a service, so ``logging`` in a step is seen here too.

Modules use the standard library's loggers, with ``extra=``, or a bound logger of :func:`get_log`. Both end in the root
logger, so a program that embeds a service keeps its own log; only a process that *is* the service configures it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from pipeserve.events import rfc3339
from pipeserve.settings import LogFormat

Log = FilteringBoundLogger

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the rest was given as ``extra``."""


LineFields = Callable[[], Mapping[str, object]]
"""What a line says of where it was written: its job, step or trace, as the context of the writer has it."""


def configure_logging(
    level: str, *, stream: TextIO | None = None, form: LogFormat = "auto", fields: LineFields | None = None
) -> None:
    """Send this process's log to ``stream`` (default: stderr). Once per process, by its composition root.

    ``form``: how lines look; ``auto``: for people on a terminal, as ``key=value`` elsewhere. ``fields`` is asked for
    each line, in the context that wrote it; what a line says itself wins.
    """
    output = sys.stderr if stream is None else stream
    on_terminal = output.isatty()
    if form == "auto":
        form = "console" if on_terminal else "keyvalue"
    handler = logging.StreamHandler(output)
    handler.setFormatter(StructuredFormatter(form, colors=on_terminal, fields=fields))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.getLevelNamesMapping().get(level.upper(), logging.INFO))
    # They tell at info what the service says in its own words: uvicorn each start and stop, arq each job twice.
    for talkative in ("uvicorn", "arq"):
        logging.getLogger(talkative).setLevel(max(root.level, logging.WARNING))


def _renderer(form: LogFormat, *, colors: bool) -> Processor:
    if form == "json":
        return structlog.processors.JSONRenderer(serializer=_json_line)
    if form == "console":
        # Draws tracebacks by itself; plain ones, because the pretty ones show local variables, which are secrets.
        return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    return structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)


def _json_line(line: dict[str, Any], **_: object) -> str:
    """One JSON object, whatever was given as ``extra``; what has no JSON form is there as its ``repr``."""
    try:
        return json.dumps(line, default=repr, allow_nan=False)
    except (TypeError, ValueError, RecursionError):  # keys that are no strings, NaN, a circle
        return json.dumps({key: value if isinstance(value, (str, int)) else repr(value) for key, value in line.items()})


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

    def __init__(self, form: LogFormat, *, colors: bool = False, fields: LineFields | None = None) -> None:
        """``form``: any but ``auto``."""
        super().__init__()
        self.form = form
        self._render = _renderer(form, colors=colors)
        self._tracebacks = form != "console"
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """One line, or more for a traceback."""
        line: dict[str, Any] = {
            "timestamp": rfc3339(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        if self._fields is not None:
            line.update(self._fields())
        line.update((name, value) for name, value in vars(record).items() if name not in _OWN)
        if record.exc_info:
            if self._tracebacks:
                line["exception"] = self.formatException(record.exc_info)
            else:
                line["exc_info"] = record.exc_info
        elif record.exc_text:  # drawn already: with its secrets masked, say
            line["exception"] = record.exc_text
        return cast(str, self._render(None, record.levelname, line))
