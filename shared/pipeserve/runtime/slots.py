"""How many runs one process has room for, and when there will be room again."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

from pipeserve.errors import OverloadedError

_WEIGHT = 0.1
"""Of the newest run in the typical time: about the last twenty count."""
_LONGEST_PAUSE = 600.0


class Slots:
    """The room of one process for runs. Use it from one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._typical: float | None = None

    def check(self, active: int) -> None:
        """Raise OverloadedError unless there is room for one more run besides ``active`` ones and those held."""
        if active + self._held >= self._limit:
            raise OverloadedError(
                f"{self._limit} runs are under way in this process, which is its limit "
                "(ZENML_SERVING_MAX_CONCURRENCY); try again later, or use mode=async",
                retry_after=self.pause(),
            )

    @contextmanager
    def hold(self, active: int) -> Generator[None]:
        """Keep room for a run that is about to start. Raises OverloadedError where there is none."""
        self.check(active)
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def ended(self, seconds: float) -> None:
        """A run took so long."""
        typical = seconds if self._typical is None else self._typical
        self._typical = typical + _WEIGHT * (seconds - typical)

    def pause(self) -> float:
        """Whole seconds until one of as many runs as there is room for will have ended, going by recent ones."""
        typical = 0.0 if self._typical is None else self._typical
        return min(max(1.0, math.ceil(typical / self._limit)), _LONGEST_PAUSE)
