"""Latencies as counts in buckets that grow by a tenth: bounded in size, summed by many processes, read to about 5 %."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeserve.runtime.ports import Percentiles

GROWTH = 1.1
SHORTEST = 1e-6
LONGEST = 1e6
"""Seconds; what lies outside counts as the nearest. So a kind has at most 290 buckets."""
_LOG_GROWTH = math.log(GROWTH)


def histogram(values: Sequence[float]) -> dict[int, int]:
    """How many of ``values`` (seconds) fall into each bucket."""
    counts: dict[int, int] = {}
    for value in values:  # a Counter takes longer to make than a run has values
        bucket = bucket_of(value)
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def bucket_of(seconds: float) -> int:
    """The bucket that a time falls into."""
    if not SHORTEST < seconds < LONGEST:  # each request and each step comes here
        seconds = LONGEST if seconds >= LONGEST else SHORTEST
    return math.ceil(math.log(seconds) / _LOG_GROWTH)


def middle(bucket: int) -> float:
    """The middle of a bucket, in seconds."""
    return GROWTH ** (bucket - 0.5)


def percentiles(buckets: Mapping[int, int]) -> Percentiles:
    """Each as the middle of the bucket that holds it."""
    total = sum(buckets.values())
    if total == 0:
        return Percentiles()
    return Percentiles(p50=_at(buckets, 0.50 * total), p95=_at(buckets, 0.95 * total), p99=_at(buckets, 0.99 * total))


def _at(buckets: Mapping[int, int], rank: float) -> float:
    seen = 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= rank:
            return middle(bucket)
    return middle(max(buckets))
