"""Why a call missed the step cache: what it remembers of earlier calls when their results are gone, or never came."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeserve.runtime.cache.key import CacheKey

_STEPS = 256
_KEYS = 16  # of each step
_GONE = 4096  # results in all; some 200 bytes each

Slot = tuple[str, str]
"""A step's name and a key's digest: where a result stands."""

Parts = frozenset[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Miss:
    """Why there was no result to use."""

    reason: Literal["first_call", "changed", "expired", "evicted"]
    """``evicted``: there was no room for it, or no longer, or it could not be copied."""
    changed: tuple[str, ...] = ()
    """Which parts of the key differ from the most similar earlier call of the step: ``code``, arguments by name."""


@dataclass(frozen=True, slots=True)
class Past:
    """What is remembered with regard to one call."""

    gone: Literal["expired", "evicted"] | None
    recent: Sequence[Parts]
    """The step's recent keys, the latest last."""

    def miss(self, key: CacheKey) -> Miss:
        """Why a call with ``key`` missed."""
        if self.gone is not None:
            return Miss(self.gone)
        mine = frozenset(key.parts)
        nearest = max(reversed(self.recent), key=lambda parts: len(parts & mine), default=None)
        if nearest is None:
            return Miss("first_call")
        differing = [name for name, part in key.parts if (name, part) not in nearest]
        differing += sorted(name for name, _ in nearest - mine)
        return Miss("changed", tuple(dict.fromkeys(differing))) if differing else Miss("evicted")


class MissMemory:
    """A bounded number of keys per step, and of results that are gone. Its user sees to locking."""

    def __init__(self) -> None:
        self._recent: OrderedDict[str, OrderedDict[str, Parts]] = OrderedDict()
        self._gone: OrderedDict[Slot, Literal["expired", "evicted"]] = OrderedDict()

    def computed(self, step: str, key: CacheKey) -> None:
        """A call of ``step`` with ``key`` has a result."""
        keys = self._recent.setdefault(step, OrderedDict())
        self._recent.move_to_end(step)
        keys[key.digest] = frozenset(key.parts)
        keys.move_to_end(key.digest)
        if len(keys) > _KEYS:
            keys.popitem(last=False)
        if len(self._recent) > _STEPS:
            self._recent.popitem(last=False)

    def lost(self, slot: Slot, reason: Literal["expired", "evicted"]) -> None:
        """That result is not kept any more."""
        self._gone[slot] = reason
        self._gone.move_to_end(slot)
        if len(self._gone) > _GONE:
            self._gone.popitem(last=False)

    def past(self, slot: Slot) -> Past:
        """What there is to tell about a miss."""
        return Past(self._gone.get(slot), [*self._recent.get(slot[0], OrderedDict[str, Parts]()).values()])

    def clear(self) -> None:
        """Forget all."""
        self._recent.clear()
        self._gone.clear()
