"""The whole service's figures: put together from the store and this process."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeserve.runtime.ports import ServiceFigures
from pipeserve.runtime.run_times import RUN, STEP
from pipeserve_api.services import Services

LATENCIES = ("sync", "async", "pickup", "step")


def collect(services: Services, stored: ServiceFigures | None) -> dict[str, Any]:
    """The figures of ``GET /metrics``. Times are in seconds.

    The store counts every run but memory-only ones, which no other process knows; those of this one are added.
    """
    local = services.inline.figures()
    completed = local.completed + (stored.completed if stored else 0)
    failed = local.failed + (stored.failed if stored else 0)
    canceled = local.canceled + (stored.canceled if stored else 0)
    seconds = local.execution_seconds + (stored.execution_seconds if stored else 0.0)
    return {
        "store_available": stored is not None,
        "total_executions": completed + failed + canceled,
        "successful_executions": completed,
        "failed_executions": failed,
        "canceled_executions": canceled,
        "success_rate": completed / (completed + failed) if completed + failed else 0.0,
        "average_execution_time": seconds / completed if completed else 0.0,
        "execution_seconds": seconds,
        "queue_depth": stored.queue_depth if stored else None,
        "oldest_job_age": stored.oldest_job_age if stored else None,
        "drain_rate": stored.drain_rate if stored else None,
        "fenced_writes": round(stored.counters.get("fenced_writes", 0)) if stored else None,
        "store_emptied": round(stored.counters.get("store_emptied", 0)) if stored else None,
        "jobs_by_status": dict(stored.jobs_by_status) if stored else {},
        "workers": [asdict(worker) for worker in stored.workers] if stored else [],
        "active_runs": services.runtime.active,
        "cache": _cache(services, stored),
        "publisher": services.inline.publisher_figures(),
        "event_buffer": services.inline.event_figures(),
        "latency": {kind: _percentiles(stored, kind) for kind in LATENCIES},
        "durations": {
            "run": _percentiles(stored, RUN),
            "steps": {
                kind.removeprefix(STEP): _percentiles(stored, kind)
                for kind in sorted(stored.latency if stored else ())
                if kind.startswith(STEP)
            },
        },
    }


def _cache(services: Services, stored: ServiceFigures | None) -> dict[str, Any]:
    """The step cache of all processes: what calls counted, and what is kept now."""
    local = services.inline.figures().counters

    def total(name: str) -> float:
        return local.get(name, 0.0) + (stored.counters.get(name, 0.0) if stored else 0.0)

    hits, misses = round(total("cache_hits")), round(total("cache_misses"))
    own = services.runtime.cache.figures()
    entries, size = (stored.cache.entries, stored.cache.bytes) if stored else (0, 0)
    if stored is None or services.cache_teller is None:  # otherwise the store has just been told
        entries, size = entries + own.entries, size + own.bytes
    return {
        "hits": hits,
        "misses": misses,
        "hit_rate": hits / (hits + misses) if hits or misses else 0.0,
        "saved_seconds": total("cache_saved_seconds"),
        "entries": entries,
        "bytes": size,
    }


def _percentiles(stored: ServiceFigures | None, kind: str) -> dict[str, float | None]:
    found = stored.latency.get(kind) if stored else None
    return {"p50": None, "p95": None, "p99": None} if found is None else asdict(found)
