"""How much memory one process may spend on events that the store has not taken yet.

While the store is away, runs go on reporting. All their logs share one budget, so that a process holds about as much
as it is set to, however many runs there are and whatever they say.

Sizes are estimates in bytes of what Python holds, not of what is sent.
"""

from __future__ import annotations

import threading
from collections import deque

ENTRY_BYTES = 400
"""An event without its message and values, or its encoded form (measured on 64-bit CPython)."""
ALWAYS_BYTES = 65_536
"""For this much of each log there is always room: a run that floods does not silence its neighbours."""
_RESERVED_AT_ONCE = 16_384  # taken from the budget ahead of need: most events then cost no lock that others share
_PART_OF_A_RUN = 4  # one log may take a quarter


class EventBudget:
    """The bytes that all logs of a process share. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._taken = 0
        self._dropped = 0

    @property
    def taken(self) -> int:
        """Bytes that logs have taken. It may pass ``max_bytes``: some events are kept whatever it says."""
        return self._taken

    @property
    def dropped(self) -> int:
        """Events that were dropped for want of room."""
        return self._dropped

    @property
    def tight(self) -> bool:
        """Whether it is nearly used up."""
        return self._taken > self.max_bytes - self.max_bytes // 8

    def take(self, size: int, *, always: bool = False) -> bool:
        """Take ``size`` bytes, if they are there or ``always``; says whether it did."""
        with self._lock:
            if not always and self._taken + size > self.max_bytes:
                return False
            self._taken += size
            return True

    def give_back(self, size: int) -> None:
        """Return bytes that were taken."""
        with self._lock:
            self._taken -= size

    def count_dropped(self) -> None:
        """One event was dropped."""
        with self._lock:
            self._dropped += 1


class EventShare:
    """One log's part of the budget: what each of its unwritten entries takes. Not thread-safe: its log's lock is.

    Once it is full it stays so until half of it is free again, so that what is dropped is one stretch of the log and
    not every other event.
    """

    def __init__(self, budget: EventBudget) -> None:
        self.held = 0
        """Bytes of the unwritten entries, and what else was put on this account."""
        self._budget = budget
        self.limit = max(budget.max_bytes // _PART_OF_A_RUN, ALWAYS_BYTES)
        """Bytes beyond which nothing fits."""
        self._reserved = 0  # taken from the budget; at least what is held
        self._sizes: deque[int] = deque()
        self._full = False

    def fits(self, size: int) -> bool:
        """Whether there is room for an entry that may be dropped."""
        wanted = self.held + size
        if wanted <= ALWAYS_BYTES:
            self._full = False
        elif self._full and (self.held > self.limit // 2 or self._budget.tight):
            return False
        else:
            self._full = wanted > self.limit or not self._reserve(wanted)
        return not self._full

    def add(self, size: int) -> None:
        """Put one more entry on the account, whether it fits or not."""
        self._sizes.append(size)
        self.hold(size)

    def hold(self, size: int) -> None:
        """Put on the account what stays until :meth:`release`."""
        self.held += size
        if self.held > self._reserved:
            self._reserve(self.held, always=True)

    def remove(self, count: int) -> None:
        """The ``count`` oldest entries are written, or gone."""
        sizes = self._sizes
        self.held -= sum(sizes.popleft() for _ in range(min(count, len(sizes))))
        if self._reserved - self.held > 2 * _RESERVED_AT_ONCE:
            self._give_back_beyond(self.held + _RESERVED_AT_ONCE)

    def settle(self) -> None:
        """No entry is to come: give back what is reserved for more."""
        self._give_back_beyond(self.held)

    def release(self) -> None:
        """Give back all."""
        self.held = 0
        self._sizes.clear()
        self._give_back_beyond(0)

    def count_dropped(self) -> None:
        """One entry was dropped."""
        self._budget.count_dropped()

    def _reserve(self, wanted: int, *, always: bool = False) -> bool:
        if wanted <= self._reserved:
            return True
        more = max(wanted - self._reserved, _RESERVED_AT_ONCE)
        taken = self._budget.take(more, always=always)
        if taken:
            self._reserved += more
        return taken

    def _give_back_beyond(self, size: int) -> None:
        self._budget.give_back(self._reserved - size)
        self._reserved = size
