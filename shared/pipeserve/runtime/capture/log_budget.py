"""How much of what one run logs is kept: the first bytes of it, and a word on the rest.

A step that prints without end must not fill the store, nor push the run's other events out of its log.
"""

from __future__ import annotations

import threading
from enum import Enum

LEAST = 32
"""Bytes that a line counts for at least: an empty one is an event, too."""


class Verdict(Enum):
    """What becomes of a line."""

    KEEP = "keep"
    LAST = "last"
    """It is the first that is not kept: now is the time to say so."""
    DROP = "drop"


class LogBudget:
    """What one run may still log. Thread-safe."""

    __slots__ = ("_dropped", "_full", "_kept", "_lock", "limit")

    def __init__(self, limit: int) -> None:
        """``limit``: bytes of text that are kept."""
        self.limit = limit
        self._dropped = 0  # bytes that were not
        self._kept = 0
        self._full = False
        self._lock = threading.Lock()

    def take(self, text: str) -> Verdict:
        """Whether ``text`` is kept. Once something was not, nothing is: what is kept has no holes."""
        size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        with self._lock:
            if not self._full and self._kept + max(size, LEAST) <= self.limit:
                self._kept += max(size, LEAST)
                return Verdict.KEEP
            first, self._full = not self._full, True
            self._dropped += size
            return Verdict.LAST if first else Verdict.DROP

    def drop(self, size: int) -> None:
        """Count ``size`` bytes that were not kept, and that nobody has asked for."""
        with self._lock:
            self._dropped += size

    def take_dropped(self) -> int:
        """How many bytes were not kept since this was last asked."""
        with self._lock:
            dropped, self._dropped = self._dropped, 0
            return dropped
