"""Keeps receivers that answer late, or not at all, from taking every place of a sender.

Each try at such a one lasts as long as a try may. With many jobs for it, jobs for others would wait behind them. So a
receiver has all places only once it is known to answer soon.
"""

from __future__ import annotations

import random
from collections import Counter
from urllib.parse import urlsplit

SOON_SECONDS = 1.0
"""An answer within so long is one that comes soon."""

_FIRST_PAUSE = 0.1
_PAUSE_STEP = 0.05
_LONGEST_PAUSE = 60.0
_KEPT = 10_000  # hosts; whoever submits jobs can name as many as they like


class SlowHosts:
    """Which hosts answered soon last time, and how many jobs are being sent to each. ``limit``: for all other hosts."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy: Counter[str] = Counter()
        self._put_off: Counter[str] = Counter()
        self._quick: dict[str, None] = {}

    def enter(self, url: str) -> float | None:
        """Take a place at the URL's host; or the seconds after which to come again.

        The more have been put off since a place was given back, the longer: coming again costs the store a look each.
        """
        host = host_of(url)
        if host not in self._quick and self._busy[host] >= self._limit:
            self._put_off[host] += 1
            longest = min(_FIRST_PAUSE + _PAUSE_STEP * self._put_off[host], _LONGEST_PAUSE)
            return random.uniform(longest / 2, longest)
        self._busy[host] += 1
        return None

    def leave(self, url: str) -> None:
        """Give the place back."""
        host = host_of(url)
        self._busy[host] -= 1
        self._put_off[host] //= 2
        if self._busy[host] <= 0:
            del self._busy[host], self._put_off[host]

    def note(self, url: str, seconds: float | None) -> None:
        """After how long the last try had its answer, whichever; None: it had none."""
        host = host_of(url)
        self._quick.pop(host, None)
        if seconds is not None and seconds <= SOON_SECONDS:
            self._quick[host] = None
            if len(self._quick) > _KEPT:
                del self._quick[next(iter(self._quick))]


def host_of(url: str) -> str:
    """The host and port; nothing that could be a secret."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()
