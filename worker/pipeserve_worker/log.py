"""The worker's own log: lines on stderr, each with the worker's id.

What steps print or log belongs to their jobs and is not written here (see ``pipeserve.runtime.isolation``).
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

Log = FilteringBoundLogger


def configure_logging(level: str) -> None:
    """Send this process's log to stderr. Once per process, by its composition root."""
    stream: TextIO = sys.stderr
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    on_terminal = stream.isatty()
    renderer: Processor = (
        structlog.dev.ConsoleRenderer()
        if on_terminal
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)
    )
    processors: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not on_terminal:  # the console renderer draws tracebacks by itself
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    # arq tells of each job twice at info level; our own log has the same with the job's outcome.
    logging.basicConfig(stream=stream, level=number, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("arq").setLevel(max(number, logging.WARNING))


def get_log(**bound: object) -> Log:
    """A logger that puts ``bound`` on each of its lines."""
    return cast(Log, structlog.get_logger(**bound))
