"""How fast jobs leave the queue, and how many were refused for want of room."""

from __future__ import annotations

import math
from collections import Counter

_STEP = 10
"""Seconds that are counted together."""
_STEPS = 7
"""Steps that are asked for: the last minute and what has begun before it."""
_UNKNOWN, _LONGEST = 30.0, 600.0
"""Seconds after which to come back to a full queue: where nothing leaves it, and at most."""


class Pace:
    """Claims and refusals of the last minute, by a clock that its callers bring (Unix time in seconds)."""

    def __init__(self) -> None:
        self._claimed: Counter[int] = Counter()
        self._refused: Counter[int] = Counter()

    def claimed(self, now: float, count: int) -> None:
        """So many jobs were taken from the queue."""
        if count:
            self._claimed[int(now // _STEP)] += count

    def refused(self, now: float) -> None:
        """A job was refused."""
        self._refused[int(now // _STEP)] += 1

    def rate(self, now: float) -> float | None:
        """Jobs taken per second of the last minute, or of what there is of it. None: none."""
        newest = int(now // _STEP)
        self._claimed = Counter({step: n for step, n in self._claimed.items() if step > newest - _STEPS})
        if not self._claimed:
            return None
        return self._claimed.total() / max(now - min(self._claimed) * _STEP, 1.0)

    def retry_after(self, now: float, waiting: int) -> float:
        """Seconds after which there should be room for all who were refused of late, of at most ``waiting``."""
        rate, newest = self.rate(now), int(now // _STEP)
        self._refused = Counter({step: n for step, n in self._refused.items() if step >= newest - 1})
        if rate is None:
            return _UNKNOWN
        return min(max(math.ceil(min(1 + self._refused.total(), waiting) / rate), 1.0), _LONGEST)
