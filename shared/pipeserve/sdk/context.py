"""Request state: one ContextVar that says who answers when code calls a step, reports, or asks where it is.

A *scope* stands in that variable: a tracer while a pipeline is read, the body of a dynamic pipeline while it runs,
or a step's :class:`StepContext` while the step runs. Because it is one context variable, threads and tasks of one
request never see another's.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from pipeserve.events import EventType, clean_text
from pipeserve.sdk.lines import OpenLine, shortened

if TYPE_CHECKING:
    from pipeserve.sdk.step import Step


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
    ) -> bool | None:
        """Tell whoever follows the run. Never blocks. False: it was too much, and no more of its kind is kept."""
        ...

    def visualize(self, step_name: str | None, value: Any, name: str | None) -> None:
        """Render ``value`` now, keep it with the job and tell of it. Never raises for what can't be rendered."""
        ...


class YieldSink(Protocol):
    """Where a step's yields go while it runs, for the steps that read them meanwhile."""

    @property
    def values(self) -> list[Any]:
        """All so far; in the end the step's value."""
        ...

    def put(self, value: Any) -> None:
        """Add one, from any thread."""
        ...


class StepContext:
    """Where the running code is: ``get_context()`` in a step returns it."""

    __slots__ = (
        "_deadline",
        "_open_lines",
        "_outputs",
        "_run",
        "_unkept",
        "emitted",
        "live",
        "members",
        "silenced",
        "step_name",
    )

    def __init__(self, run: RunControl, step_name: str | None, timeout: float | None = None) -> None:
        self._run = run
        self.emitted = False
        """Whether anything was emitted yet."""
        self.live: YieldSink | None = None
        """Takes what the step yields; None: nobody reads it before the step has completed."""
        self.members: tuple[StepContext, ...] = ()
        """In a batched step: the context of each item's own request, in the order of the items."""
        self.step_name = step_name
        """The name of this call in its pipeline; None in the body of a dynamic pipeline."""
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._outputs = itertools.count()
        # By thread and stream: what was written since the last line end.
        self._open_lines: dict[tuple[int, str], OpenLine] = {}
        self.silenced = False
        """Whether no more of what the step prints is kept: it is counted by :meth:`skip`, and no more."""
        self._unkept = 0  # bytes

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

    def restart(self, timeout: float | None) -> None:
        """The step is called (again): from now on it may take ``timeout`` seconds. For the runtime."""
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def emit(self, value: Any) -> None:
        """Send ``value`` as an ``output`` event."""
        self._run.checkpoint()
        self.emitted = True
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

    def log(self, level: str, message: str, logger: str) -> bool | None:
        """Send a ``log`` event; False: no more of them are kept. ``logger`` is ``print`` for standard output."""
        text, cut = shortened(message)
        data: dict[str, Any] = {"logger": logger, "cut": True} if cut else {"logger": logger}
        return self._run.report(EventType.LOG, self.step_name, data, level=level, message=text)

    def print(self, text: str, logger: str = "print", passed_on: Callable[[str], object] | None = None) -> None:
        """Take what the step writes to a standard stream; each whole line is a ``log`` event. For the runtime.

        A carriage return ends a line too, as progress bars use it. ``passed_on`` takes each line that is kept.
        """
        place = (threading.get_ident(), logger)
        line = self._open_lines.get(place)
        if line is None:
            line = self._open_lines[place] = OpenLine(passed_on)
        start = 0
        while start < len(text):
            ended, start = line.take(text, start)
            if ended is not None and self._print_line(ended, logger, passed_on) is False and passed_on is None:
                self.silenced = True
                self.skip(text[start:])
                return

    def skip(self, text: str) -> None:
        """Count what is not kept. Not exact where several threads of a step print at once."""
        self._unkept += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))

    def end_print(self) -> None:
        """The step has ended: what it printed without a line end is its last line."""
        if self._open_lines:
            open_lines, self._open_lines = self._open_lines, {}
            for (_, logger), line in list(open_lines.items()):  # a thread that outlives the step may add one
                if rest := line.rest():
                    self._print_line(rest, logger, line.passed_on)
        if self._unkept:
            unkept, self._unkept = self._unkept, 0
            self._run.report(EventType.LOG, self.step_name, {"logger": "print", "unkept": unkept})

    def _print_line(self, line: str, logger: str, passed_on: Callable[[str], object] | None) -> bool | None:
        kept = self.log("info", line, logger)
        if passed_on is not None and kept is not False:
            passed_on(line)
        return kept

    def visualize(self, value: Any, name: str | None = None) -> None:
        """Show ``value`` with the job, as a ``visualization`` event."""
        self._run.visualize(self.step_name, value, name)


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
    ) -> bool | None:
        """Nobody listens."""

    def visualize(self, step_name: str | None, value: Any, name: str | None) -> None:
        """Nobody looks."""


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


def visualize(value: Any, name: str | None = None) -> None:
    """Show ``value`` with the job: ``GET /jobs/{id}/visualizations``, and a ``visualization`` event.

    ``value`` is ``HTML``, ``Markdown`` or ``PNG``, a PIL image, a pandas DataFrame, a matplotlib figure, or anything
    that a notebook can show as HTML or PNG (``_repr_html_``, ``_repr_png_``). What a step returns of the first six is
    shown by itself. ``name`` is for people; the step's by default.

    It is drawn at once, in the calling thread, so ``value`` may change after. What can't be drawn is a warning in the
    job's log. A run keeps 32 of them, of 8 MiB in all. Outside a run it does nothing.
    """
    get_context().visualize(value, name)
