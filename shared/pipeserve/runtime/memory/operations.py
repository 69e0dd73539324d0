"""An operator's questions about jobs that live in this process."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from pipeserve.jobs import JobStatus
from pipeserve.runtime.memory.state import MemoryState
from pipeserve.runtime.ports import CacheGauges, Percentiles, ServiceFigures


class MemoryOperations:
    """``Operations`` in this process. It lists no worker processes: there are none."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def figures(self) -> ServiceFigures:
        """The whole service's figures."""
        state = self._state
        queue = state.queue()
        statuses = Counter(record.status for record in state.all())
        caches = state.told_caches()
        return ServiceFigures(
            completed=state.ended[JobStatus.COMPLETED],
            failed=state.ended[JobStatus.FAILED],
            canceled=state.ended[JobStatus.CANCELED],
            execution_seconds=state.execution_seconds,
            jobs_by_status={status.value: statuses[status] for status in JobStatus},
            queue_depth=len(queue),
            oldest_job_age=max(0.0, state.clock() - queue[0].created_at) if queue else 0.0,
            last_execution=state.last_execution,
            latency={kind: percentiles(seconds) for kind, seconds in state.latencies.items()},
            workers=(),
            counters=dict(state.counters),
            cache=CacheGauges(sum(cache.entries for cache in caches), sum(cache.bytes for cache in caches)),
        )

    async def tell_cache(self, owner: str, gauges: CacheGauges) -> None:
        """How full the step cache of process ``owner`` is; forgotten after 30 seconds."""
        self._state.caches[owner] = (self._state.clock(), gauges)

    async def check(self) -> list[str]:
        """Nothing: whoever uses this store knows that it forgets."""
        return []

    def describe(self) -> Mapping[str, object]:
        """The store's kind."""
        return {"kind": "memory"}


def percentiles(values: Sequence[float]) -> Percentiles:
    """By the nearest rank."""
    if not values:
        return Percentiles()
    ordered = sorted(values)
    p50, p95, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.50, 0.95, 0.99))
    return Percentiles(p50=p50, p95=p95, p99=p99)
