"""When a caller asks again, and when it gives up. No I/O: the clients do the waiting."""

from __future__ import annotations

FIRST_DELAY = 0.2
LONGEST_DELAY = 10.0


class Retries:
    """Counts failures in a row. Progress starts the count anew."""

    def __init__(self, limit: int = 8) -> None:
        self._limit = limit
        self._failures = 0

    def progressed(self) -> None:
        """The service is there."""
        self._failures = 0

    def failed(self, cause: Exception, *, at_least: float | None = None) -> float:
        """The seconds to wait before the next try. Raises ``cause`` when there were enough of them."""
        if self._failures >= self._limit:
            raise cause
        delay = min(FIRST_DELAY * 2**self._failures, LONGEST_DELAY)
        self._failures += 1
        return max(delay, at_least or 0.0)
