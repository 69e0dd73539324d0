"""``StepCache``: the results of a process's steps, by what they were called with, for all its requests.

The least recently used result goes first, by number and by bytes, and each has its time to live. Equal calls at the
same time share one :class:`~pipeserve.runtime.cache.flight.Flight`. The cache computes nothing itself: its user
enters, and then waits, or computes and completes.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pipeserve.runtime.cache.flight import NOT_COPIED, Flight, NotCopiedError, deep_copy
from pipeserve.runtime.cache.key import CacheKey
from pipeserve.runtime.cache.misses import Miss, MissMemory, Past, Slot
from pipeserve.runtime.cache.value_size import size_of
from pipeserve.sdk.cache import Cache

__all__ = ["Flight", "Hit", "Miss", "NotCopiedError", "StepCache", "StepCacheFigures", "Ticket"]


@dataclass(frozen=True, slots=True)
class Hit:
    """A result that was there."""

    value: Any
    age: float
    """Seconds since it was stored."""
    ttl: float
    """Seconds for which it may still be used."""
    saved: float
    """Seconds that its computation took."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """No result yet: a place in a flight."""

    flight: Flight
    leads: bool
    """Whether the holder computes, and must call ``complete`` or ``fail``. Others wait for ``flight.on_done``."""
    miss: Miss | None
    """Why the one who leads found nothing; None: it was not asked to look."""


@dataclass(frozen=True, slots=True)
class StepCacheFigures:
    """Counts since the start, but for ``entries`` and ``bytes``."""

    hits: int
    misses: int
    """Calls that looked, found nothing and led a flight."""
    entries: int
    bytes: int
    """An estimate of what all entries hold."""
    saved_seconds: float
    """What the computation of the hits' values took."""
    evictions: int
    """Results that gave way to others before their time."""
    joined: int
    """Calls that waited for an equal one."""


@dataclass(frozen=True, slots=True)
class _Entry:
    value: Any
    size: int
    seconds: float
    stored: float
    expires: float


class StepCache:
    """Bounded by ``max_entries`` and ``max_bytes`` (estimated); ``ttl`` in seconds is for policies that name none.

    With ``max_entries=0`` it keeps nothing, and equal calls at the same time still share one computation. Thread-safe:
    values are copied and measured outside its lock.
    """

    def __init__(
        self, *, ttl: float, max_entries: int, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ttl = ttl
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[Slot, _Entry] = OrderedDict()  # the least recently used first
        self._expiries: list[tuple[float, Slot]] = []  # a heap; those of entries that are gone are skipped
        self._flights: dict[Slot, Flight] = {}
        self._past = MissMemory()
        self._bytes = 0
        self._hits = self._misses = self._evictions = self._joined = 0
        self._saved = 0.0

    def enter(self, step: str, key: CacheKey, policy: Cache, *, read: bool = True, follow: bool = True) -> Hit | Ticket:
        """A kept result; or else a place in the flight of an equal call, or in a new one, to lead.

        ``read=False``: look for nothing, and lead alone. ``follow=False``: use a kept result, but wait for nobody.
        """
        if not read:
            return Ticket(Flight(step, key, policy), leads=True, miss=None)
        slot = (step, key.digest)
        while True:
            with self._lock:
                now = self._clock()
                entry = self._fresh(slot, now)
                if entry is None:
                    flight, past = self._board(slot, key, policy, follow)
                    break
            value = deep_copy(entry.value) if policy.copy else entry.value
            if value is not NOT_COPIED:
                return Hit(value, now - entry.stored, entry.expires - now, entry.seconds)
            self._withdraw(slot, entry)
        return Ticket(flight, leads=past is not None, miss=None if past is None else past.miss(key))

    def complete(
        self, flight: Flight, value: Any, seconds: float, *, store: bool = True, ttl: float | None = None
    ) -> bool:
        """End a flight with ``value``, whose computation took ``seconds``; returns whether it is kept for later calls.

        If the policy says ``copy``, a copy is kept and shared, so that whoever computed it may change its own.
        ``ttl``: seconds for which it may be used, if it came from elsewhere and some of its time is over.
        """
        shared = deep_copy(value) if flight.policy.copy else value
        entry = self._entry(shared, seconds, flight.policy, ttl) if store else None
        with self._lock:
            self._land(flight)
            kept = entry is not None and self._keep(flight.step, flight.key, entry)
        flight.succeed(value, shared, seconds)
        return kept

    def fail(self, flight: Flight, error: BaseException) -> None:
        """End a flight with an error, which all who wait for it get. It is not kept."""
        with self._lock:
            self._land(flight)
        flight.fail(error)

    def put(self, step: str, key: CacheKey, policy: Cache, value: Any, *, seconds: float, ttl: float) -> bool:
        """Keep a result that came from elsewhere for ``ttl`` seconds; returns whether it is kept."""
        entry = self._entry(deep_copy(value) if policy.copy else value, seconds, policy, ttl)
        with self._lock:
            return self._keep(step, key, entry)

    def figures(self) -> StepCacheFigures:
        """How it has done and how full it is."""
        with self._lock:
            self._expire(self._clock())
            return StepCacheFigures(
                hits=self._hits,
                misses=self._misses,
                entries=len(self._entries),
                bytes=self._bytes,
                saved_seconds=self._saved,
                evictions=self._evictions,
                joined=self._joined,
            )

    def clear(self) -> None:
        """Forget all results, and that there were any. Flights go on."""
        with self._lock:
            self._entries.clear()
            self._expiries.clear()
            self._past.clear()
            self._bytes = 0

    def _entry(self, value: Any, seconds: float, policy: Cache, ttl: float | None) -> _Entry:
        if ttl is None:
            ttl = self._ttl if policy.ttl is None else policy.ttl
        size = size_of(value)
        now = self._clock()
        return _Entry(value, size, seconds, now, now + ttl)

    # ---- under the lock

    def _fresh(self, slot: Slot, now: float) -> _Entry | None:
        entry = self._entries.get(slot)
        if entry is None:
            return None
        if now >= entry.expires:
            self._remove(slot, "expired")
            return None
        self._entries.move_to_end(slot)
        self._hits += 1
        self._saved += entry.seconds
        return entry

    def _board(self, slot: Slot, key: CacheKey, policy: Cache, follow: bool) -> tuple[Flight, Past | None]:
        """A flight; and for the one who leads it, what tells why."""
        flying = self._flights.get(slot)
        if follow and flying is not None and flying.join():
            self._joined += 1
            return flying, None
        flight = Flight(slot[0], key, policy)
        if flying is None or flying.abandoned:
            self._flights[slot] = flight
        self._misses += 1
        return flight, self._past.past(slot)

    def _land(self, flight: Flight) -> None:
        slot = (flight.step, flight.key.digest)
        if self._flights.get(slot) is flight:
            del self._flights[slot]

    def _keep(self, step: str, key: CacheKey, entry: _Entry) -> bool:
        slot = (step, key.digest)
        self._past.computed(step, key)
        replaced = self._entries.pop(slot, None)
        if replaced is not None:
            self._bytes -= replaced.size
        if not self._fits(entry):
            self._past.lost(slot, "evicted")
            return False
        self._expire(entry.stored)
        while len(self._entries) >= self._max_entries or self._bytes + entry.size > self._max_bytes:
            self._remove(next(iter(self._entries)), "evicted")
            self._evictions += 1
        self._entries[slot] = entry
        self._bytes += entry.size
        heapq.heappush(self._expiries, (entry.expires, slot))
        if len(self._expiries) > 2 * len(self._entries) + 64:
            self._expiries = [(kept.expires, place) for place, kept in self._entries.items()]
            heapq.heapify(self._expiries)
        return True

    def _fits(self, entry: _Entry) -> bool:
        copied, lasting = entry.value is not NOT_COPIED, entry.expires > entry.stored
        return copied and lasting and self._max_entries > 0 and entry.size <= self._max_bytes

    def _expire(self, now: float) -> None:
        while self._expiries and self._expiries[0][0] <= now:
            _, slot = heapq.heappop(self._expiries)
            entry = self._entries.get(slot)
            if entry is not None and entry.expires <= now:  # it may have been replaced
                self._remove(slot, "expired")

    def _remove(self, slot: Slot, reason: Literal["expired", "evicted"]) -> None:
        self._bytes -= self._entries.pop(slot).size
        self._past.lost(slot, reason)

    # ----

    def _withdraw(self, slot: Slot, entry: _Entry) -> None:
        """It was no hit: its value can't be copied any more."""
        with self._lock:
            self._hits -= 1
            self._saved -= entry.seconds
            if self._entries.get(slot) is entry:
                self._remove(slot, "evicted")
