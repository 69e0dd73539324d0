"""An operator's questions about jobs that live in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pydantic_core import from_json

from pipeserve.jobs import JobStatus
from pipeserve.runtime.latency import percentiles
from pipeserve.runtime.memory.state import MemoryState
from pipeserve.runtime.ports import CacheGauges, ServiceFigures


class MemoryOperations:
    """``Operations`` in this process. It lists no worker processes: there are none."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def figures(self) -> ServiceFigures:
        """The whole service's figures."""
        state, now = self._state, self._state.clock()
        first_due = state.queue.first_due()
        statuses = Counter(record.status for record in state.all())
        caches = state.told_caches()
        return ServiceFigures(
            completed=state.ended[JobStatus.COMPLETED],
            failed=state.ended[JobStatus.FAILED],
            canceled=state.ended[JobStatus.CANCELED],
            execution_seconds=state.execution_seconds,
            jobs_by_status={status.value: statuses[status] for status in JobStatus},
            queue_depth=len(state.queue),
            oldest_job_age=0.0 if first_due is None else max(0.0, now - first_due),
            last_execution=state.last_execution,
            latency={kind: percentiles(buckets) for kind, buckets in state.durations.items()},
            workers=(),
            counters=dict(state.counters),
            cache=CacheGauges(sum(cache.entries for cache in caches), sum(cache.bytes for cache in caches)),
            drain_rate=state.pace.rate(now),
            durations={kind: dict(buckets) for kind, buckets in state.durations.items()},
        )

    async def tell_cache(self, owner: str, gauges: CacheGauges) -> None:
        """How full the step cache of process ``owner`` is; forgotten after 30 seconds."""
        self._state.caches[owner] = (self._state.clock(), gauges)

    async def check(self) -> list[str]:
        """Nothing: whoever uses this store knows that it forgets."""
        return []

    async def condition(self) -> Mapping[str, object]:
        """Nothing to tell."""
        return {"warnings": [], "emptied_at": None}

    def describe(self) -> Mapping[str, object]:
        """The store's kind."""
        return {"kind": "memory"}

    async def tell_drill(self, report: bytes) -> None:
        """Keep the report of a drill (one JSON object) in place of the one before."""
        self._state.drill = report

    async def last_drill(self) -> Mapping[str, object] | None:
        """The report of the last drill."""
        return None if self._state.drill is None else from_json(self._state.drill)
