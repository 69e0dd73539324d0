"""How long to wait before the next try: doubled each time, with some chance in it, up to a limit."""

from __future__ import annotations

import random


class Backoff:
    """Growing delays in seconds: ``first``, twice that, … at most ``limit``; each shortened at random by up to a half.

    The chance keeps workers that lost the same store from coming back in step.
    """

    def __init__(self, first: float, limit: float) -> None:
        if not 0 < first <= limit:
            raise ValueError(f"Backoff: need 0 < first <= limit, not {first} and {limit}")
        self._first = first
        self._limit = limit
        self._next = first

    def next(self) -> float:
        """The delay before the next try."""
        delay = self._next
        self._next = min(delay * 2, self._limit)
        return delay * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It went well: begin again with ``first``."""
        self._next = self._first
