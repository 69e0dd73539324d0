"""Request state: one ContextVar that says who answers when code calls a step, reports, or asks where it is.

A *scope* stands in that variable: a tracer while a pipeline is read, the body of a dynamic pipeline while it runs,
or a step's :class:`StepContext` while the step runs. Because it is one context variable, threads and tasks of one
request never see another's.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from pipeserve.events import EventType, clean_text

if TYPE_CHECKING:
    from pipeserve.sdk.step import Step


_LINE_END = re.compile(r"\r?\n|\r")
_MOST_PIECES = 65_536  # of an open line; then what there is counts as a line


class Scope(Protocol):
    """Who answers when a step is called in this context."""

    def call_step(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of ``step(*args, **kwargs)`` here."""
        ...


class RunControl(Protocol):
    """What a step's context needs of the run that it belongs to."""

    @property
    def job_id(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def run_name(self) -> str: ...
    @property
    def pipeline_state(self) -> Any: ...
    @property
    def cancelled(self) -> bool: ...

    def remaining(self) -> float:
        """Seconds to the deadline."""
        ...

    def checkpoint(self) -> None:
        """Raise, if the run must stop now."""
        ...

    def report(
        self,
        event_type: EventType,
        step_name: str | None,
        data: Any,
        *,
        level: str | None = None,
        message: str | None = None,
    ) -> None:
        """Tell whoever follows the run. Never blocks."""
        ...


class StepContext:
    """Where the running code is: ``get_context()`` in a step returns it."""

    __slots__ = ("_deadline", "_open_lines", "_outputs", "_run", "step_name")

    def __init__(self, run: RunControl, step_name: str | None, timeout: float | None = None) -> None:
        self._run = run
        self.step_name = step_name
        """The name of this call in its pipeline; None in the body of a dynamic pipeline."""
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._outputs = itertools.count()
        self._open_lines: dict[int, list[str]] = {}  # by thread: what it printed since its last line end

    @property
    def bounded(self) -> bool:
        """Whether the step has a timeout of its own."""
        return self._deadline is not None

    @property
    def job_id(self) -> str:
        """The job's id; ``local`` outside a service."""
        return self._run.job_id

    @property
    def attempt(self) -> int:
        """Which try at the job this is, from 1."""
        return self._run.attempt

    @property
    def run_name(self) -> str:
        """The run's name."""
        return self._run.run_name

    @property
    def idempotency_key(self) -> str:
        """The same for every retry of this step in this job: for the step's own calls to the outside."""
        return f"{self._run.job_id}:{self.step_name or 'pipeline'}"

    @property
    def pipeline_state(self) -> Any:
        """What the pipeline's ``on_init`` returned in this process."""
        return self._run.pipeline_state

    @property
    def cancelled(self) -> bool:
        """Whether the run should stop. A long loop in a thread asks, and returns."""
        return self._run.cancelled

    def remaining(self) -> float:
        """Seconds until this step must have ended, by its own timeout or the run's; ``inf`` without a deadline."""
        if self._deadline is None:
            return self._run.remaining()
        return min(self._deadline - time.monotonic(), self._run.remaining())

    def call_step(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Inside a step, a step is its plain function."""
        return step.fn(*args, **kwargs)

    def emit(self, value: Any) -> None:
        """Send ``value`` as an ``output`` event."""
        self._run.checkpoint()
        self._run.report(EventType.OUTPUT, self.step_name, {"value": value, "index": next(self._outputs)})

    def progress(self, fraction: float, message: str) -> None:
        """Send a ``progress_update``."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress: fraction must be between 0 and 1, not {fraction!r}")
        self._run.checkpoint()
        words = clean_text(str(message)) if message else None
        self._run.report(EventType.PROGRESS_UPDATE, self.step_name, {"fraction": float(fraction)}, message=words)

    def log_metadata(self, values: Mapping[str, Any]) -> None:
        """Send a ``metadata`` event."""
        self._run.report(EventType.METADATA, self.step_name, dict(values))

    def log(self, level: str, message: str, logger: str) -> None:
        """Send a ``log`` event. ``logger`` is ``print`` for standard output."""
        self._run.report(EventType.LOG, self.step_name, {"logger": logger}, level=level, message=clean_text(message))

    def print(self, text: str) -> None:
        """Take what the step writes to standard output; each whole line is a ``log`` event.

        A carriage return ends a line too, as progress bars use it.
        """
        parts = self._open_lines.setdefault(threading.get_ident(), [])
        if "\n" not in text and "\r" not in text and len(parts) < _MOST_PIECES:
            parts.append(text)
            return
        *lines, rest = _LINE_END.split("".join([*parts, text]))
        if not lines:
            lines, rest = [rest], ""
        parts[:] = [rest] if rest else []
        for line in lines:
            self.log("info", line, "print")

    def end_print(self) -> None:
        """The step has ended: what it printed without a line end is its last line."""
        if self._open_lines:
            for parts in self._open_lines.values():
                if line := "".join(parts):
                    self.log("info", line, "print")
            self._open_lines = {}


def run_of(context: StepContext) -> RunControl:
    """The run that ``context`` belongs to: for the runtime, not for authors."""
    return context._run  # pyright: ignore[reportPrivateUsage]


class LocalRun:
    """The run of code outside a service (a :class:`RunControl`): no deadline, never stopped, and nobody follows it."""

    job_id = "local"
    attempt = 1
    run_name = "local"
    cancelled = False

    def __init__(self, pipeline_state: Any = None) -> None:
        self.pipeline_state = pipeline_state

    def remaining(self) -> float:
        """No deadline."""
        return math.inf

    def checkpoint(self) -> None:
        """Never stops."""

    def report(
        self,
        event_type: EventType,
        step_name: str | None,
        data: Any,
        *,
        level: str | None = None,
        message: str | None = None,
    ) -> None:
        """Nobody listens."""


current_scope: ContextVar[Scope | None] = ContextVar("pipeserve_scope", default=None)
"""The one variable. Only the tracer and ``pipeserve.runtime`` (and its in-process twin) set it."""


def get_context() -> StepContext:
    """Where the running code is. Outside a run: a context with job id ``local``, no state and no deadline."""
    scope = current_scope.get()
    return scope if isinstance(scope, StepContext) else StepContext(LocalRun(), None)


def progress(fraction: float, message: str = "") -> None:
    """Say how far this step is: ``fraction`` from 0 to 1. A checkpoint: a cancelled run stops here.

    Becomes a ``progress_update`` event, at most 20 a second. Outside a run it does nothing.
    """
    get_context().progress(fraction, message)


def emit(value: Any) -> None:
    """Send ``value`` to whoever follows the job, as an ``output`` event. A checkpoint: a cancelled run stops here.

    Outside a run it does nothing.
    """
    get_context().emit(value)


def log_metadata(values: Mapping[str, Any]) -> None:
    """Keep ``values`` (JSON) with the job, as a ``metadata`` event. Outside a run it does nothing."""
    get_context().log_metadata(values)
