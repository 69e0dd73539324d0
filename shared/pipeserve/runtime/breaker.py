"""A circuit breaker: stops trying what keeps failing, and finds out by itself when it works again.

::

    closed ──(enough failed of late)──► open ──(open_seconds later)──► half_open ──(the probe went well)──► closed
                                          ▲                                 │
                                          └─────────(the probe failed)──────┘

It counts items of work, not calls: one failed write of 64 records is 64 failures. Not thread-safe.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum

_BUCKETS = 60


class BreakerState(StrEnum):
    """Whether work is tried."""

    CLOSED = "closed"
    """All of it."""
    HALF_OPEN = "half_open"
    """One probe; its end decides."""
    OPEN = "open"
    """Nothing."""


class CircuitBreaker:
    """Ask :meth:`allow` before each try, and tell how it ended by :meth:`succeeded` or :meth:`failed`.

    It opens when at least ``min_events`` items ended in the last ``window_seconds``, and ``error_threshold`` of them
    (a part, above 0 and at most 1) or more failed. ``clock`` is in seconds and never goes back. ``on_change`` is
    called with each new state.
    """

    def __init__(
        self,
        error_threshold: float,
        min_events: int,
        open_seconds: float,
        window_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[BreakerState], object] | None = None,
    ) -> None:
        if not 0 < error_threshold <= 1:
            raise ValueError(f"CircuitBreaker: error_threshold must be above 0 and at most 1, not {error_threshold}")
        if min_events < 1:
            raise ValueError(f"CircuitBreaker: min_events must be 1 or more, not {min_events}")
        if open_seconds <= 0 or window_seconds <= 0:
            raise ValueError(
                f"CircuitBreaker: open_seconds and window_seconds must be above 0, not {open_seconds}, {window_seconds}"
            )
        self._error_threshold = error_threshold
        self._min_events = min_events
        self._open_seconds = open_seconds
        self._bucket_seconds = window_seconds / _BUCKETS
        self._clock = clock
        self._on_change = on_change
        self._state = BreakerState.CLOSED
        self._wait_until = 0.0  # open: when a probe may start; half open: when the one under way counts as lost
        self._buckets: deque[list[int]] = deque()  # the window: when (in buckets of time), successes, failures
        self._successes = self._failures = 0  # in the window

    @property
    def state(self) -> BreakerState:
        """As the last call left it: time alone changes nothing, only :meth:`allow` makes it half open."""
        return self._state

    @property
    def wait(self) -> float:
        """Seconds for which :meth:`allow` will say no, if nothing else happens; 0.0: it says yes."""
        return 0.0 if self._state is BreakerState.CLOSED else max(0.0, self._wait_until - self._clock())

    def allow(self) -> bool:
        """Whether to try now. In half-open state one try at a time is allowed, and each yes must be answered for.

        A probe whose end nobody tells within ``open_seconds`` counts as lost, and another may start.
        """
        if self._state is BreakerState.CLOSED:
            return True
        if self.wait > 0:
            return False
        self._wait_until = self._clock() + self._open_seconds
        self._change(BreakerState.HALF_OPEN)
        return True

    def succeeded(self, count: int) -> None:
        """So many items went well."""
        if self._state is BreakerState.HALF_OPEN:
            self._change(BreakerState.CLOSED)
        elif self._state is BreakerState.CLOSED:
            self._count(count, 0)

    def failed(self, count: int) -> None:
        """So many items went wrong."""
        if self._state is BreakerState.HALF_OPEN:
            self._open()
        elif self._state is BreakerState.CLOSED:
            self._count(0, count)
            total = self._successes + self._failures
            if total >= self._min_events and self._failures >= self._error_threshold * total:
                self._open()

    def _open(self) -> None:
        self._buckets.clear()
        self._successes = self._failures = 0
        self._wait_until = self._clock() + self._open_seconds
        self._change(BreakerState.OPEN)

    def _change(self, state: BreakerState) -> None:
        if state is not self._state:
            self._state = state
            if self._on_change is not None:
                self._on_change(state)

    def _count(self, successes: int, failures: int) -> None:
        """Add to this moment's bucket, after those that have left the window are gone."""
        now = int(self._clock() / self._bucket_seconds)
        while self._buckets and self._buckets[0][0] <= now - _BUCKETS:
            _, good, bad = self._buckets.popleft()
            self._successes -= good
            self._failures -= bad
        if not self._buckets or self._buckets[-1][0] != now:
            self._buckets.append([now, 0, 0])
        bucket = self._buckets[-1]
        bucket[1] += successes
        bucket[2] += failures
        self._successes += successes
        self._failures += failures
