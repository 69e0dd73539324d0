"""What the step cache did for one call, as members of a :class:`~pipeserve.jobs.CacheReceipt`. Seconds throughout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeserve.runtime.cache.key import UnhashableArgumentError
from pipeserve.runtime.cache.shared_tier import SharedResult
from pipeserve.runtime.cache.step_cache import Flight, Hit, Miss
from pipeserve.runtime.run import StepRecord
from pipeserve.sdk.cache import Cache

Receipt = dict[str, Any]

ALL_ARGUMENTS = Cache()
"""The policy that tells calls apart by all their arguments."""


def hit(found: Hit) -> Receipt:
    """A value of this process was used."""
    return {"status": "hit", "saved": found.saved, "age": found.age, "ttl": found.ttl}


def shared_hit(found: SharedResult) -> Receipt:
    """A value that another process computed was used."""
    return {"status": "shared_hit", "saved": found.seconds, "ttl": found.ttl}


def joined(flight: Flight) -> Receipt:
    """An equal call was under way, and its value was used."""
    return {"status": "joined", "saved": flight.seconds}


def miss(found: Miss | None) -> Receipt:
    """The value had to be computed. None: the request asked not to look."""
    if found is None:
        return {"status": "bypass"}
    return {"status": "miss", "reason": found.reason, "changed": list(found.changed)}


def unhashable(error: UnhashableArgumentError) -> Receipt:
    """An argument has no key: such a call can't be cached."""
    return {"status": "miss", "reason": "unhashable", "changed": [error.argument], "detail": str(error)}


def counters(steps: Iterable[StepRecord]) -> dict[str, float]:
    """What a run's receipts add to the deployment's totals; empty where no step of it can be cached."""
    found = [record.cache for record in steps if record.cache is not None]
    if not found:
        return {}
    hits = sum(receipt["status"] in ("hit", "shared_hit", "joined") for receipt in found)
    return {
        "cache_hits": float(hits),
        "cache_misses": float(len(found) - hits),
        "cache_saved_seconds": sum(receipt.get("saved", 0.0) for receipt in found),
    }
