"""What a step's context asks while its call is shared by several runs: it stops when none of them waits any more."""

from __future__ import annotations

import time
from typing import Any

from pipeserve.errors import Problem
from pipeserve.events import EventType
from pipeserve.runtime.cache.step_cache import Flight
from pipeserve.runtime.capture.isolation import LogRouting, RoutedRun
from pipeserve.runtime.capture.veil import Veil
from pipeserve.runtime.run import RunStopped


class FlightControl:
    """A :class:`~pipeserve.runtime.capture.isolation.RoutedRun`: the leading run's. Its cancel alone stops nothing."""

    __slots__ = ("_flight", "_run")

    def __init__(self, run: RoutedRun, flight: Flight) -> None:
        self._run = run
        self._flight = flight

    @property
    def job_id(self) -> str:
        """The leading job's id."""
        return self._run.job_id

    @property
    def attempt(self) -> int:
        """Which try at that job this is."""
        return self._run.attempt

    @property
    def run_name(self) -> str:
        """That run's name."""
        return self._run.run_name

    @property
    def pipeline_state(self) -> Any:
        """What ``on_init`` returned."""
        return self._run.pipeline_state

    @property
    def log_routing(self) -> LogRouting | None:
        """By whom what the call prints is routed."""
        return self._run.log_routing

    @property
    def veil(self) -> Veil | None:
        """What is masked in the leading run."""
        return self._run.veil

    @property
    def followed(self) -> bool:
        """Whether anybody is told."""
        return self._run.followed

    @property
    def log_limit(self) -> int:
        """Bytes of log text that the leading run keeps."""
        return self._run.log_limit

    @property
    def draws(self) -> bool:
        """Whether what the call shows is kept."""
        return self._run.draws

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the result any more."""
        return self._flight.abandoned

    def remaining(self) -> float:
        """Seconds to the deadline of that run which waits for longest."""
        return self._flight.latest - time.monotonic()

    def checkpoint(self) -> None:
        """Raise RunStopped, if nobody wants the result any more."""
        if self._flight.abandoned:
            raise RunStopped

    def report(
        self,
        event_type: EventType,
        step_name: str | None,
        data: Any,
        *,
        level: str | None = None,
        message: str | None = None,
        error: Problem | None = None,
    ) -> bool | None:
        """Tell whoever follows the leading run; nobody, once that has ended."""
        return self._run.report(event_type, step_name, data, level=level, message=message)

    def visualize(self, step_name: str | None, value: Any, name: str | None) -> None:
        """Keep it with the leading job."""
        self._run.visualize(step_name, value, name)
