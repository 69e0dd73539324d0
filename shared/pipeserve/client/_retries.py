"""When a caller asks again, and when it gives up. No I/O: the clients do the waiting."""

from __future__ import annotations

import math

FIRST_DELAY = 0.2
LONGEST_DELAY = 10.0


class Retries:
    """Counts failures in a row. Progress starts the count anew.

    ``patience``: seconds that all waits together may take.
    """

    def __init__(self, limit: int = 8, patience: float = math.inf) -> None:
        self._limit = limit
        self._patience = patience
        self._failures = 0
        self._waited = 0.0

    def progressed(self) -> None:
        """The service is there."""
        self._failures = 0
        self._waited = 0.0

    def failed(self, cause: Exception, *, at_least: float | None = None) -> float:
        """The seconds to wait before the next try. Raises ``cause`` when there were enough of them."""
        delay = max(min(FIRST_DELAY * 2**self._failures, LONGEST_DELAY), at_least or 0.0)
        if self._failures >= self._limit or self._waited + delay > self._patience:
            raise cause
        self._failures += 1
        self._waited += delay
        return delay
