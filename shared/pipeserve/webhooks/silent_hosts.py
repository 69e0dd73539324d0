"""Keeps receivers that do not answer from taking every place of a sender.

Each try at such a one lasts as long as a try may. With many jobs for it, jobs for others would wait behind them.
"""

from __future__ import annotations

import random
from collections import Counter
from urllib.parse import urlsplit

_PUT_OFF_SECONDS = (1.0, 5.0)
_KEPT = 10_000  # hosts; whoever submits jobs can name as many as they like


class SilentHosts:
    """Which hosts gave no answer last time, and how many jobs are being sent to each. ``limit``: for a silent one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy: Counter[str] = Counter()
        self._silent: dict[str, None] = {}

    def enter(self, url: str) -> float | None:
        """Take a place at the URL's host; or the seconds after which to come again."""
        host = host_of(url)
        if host in self._silent and self._busy[host] >= self._limit:
            return random.uniform(*_PUT_OFF_SECONDS)
        self._busy[host] += 1
        return None

    def leave(self, url: str) -> None:
        """Give the place back."""
        host = host_of(url)
        self._busy[host] -= 1
        if self._busy[host] <= 0:
            del self._busy[host]

    def note(self, url: str, *, answered: bool) -> None:
        """Whether the last try had an answer, whichever."""
        host = host_of(url)
        self._silent.pop(host, None)
        if not answered:
            self._silent[host] = None
            if len(self._silent) > _KEPT:
                del self._silent[next(iter(self._silent))]


def host_of(url: str) -> str:
    """The host and port; nothing that could be a secret."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()
