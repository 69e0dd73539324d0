"""The whole service's figures: put together from the store and this process, as JSON values or Prometheus text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.breaker import BreakerState
from pipeserve.runtime.ports import ServiceFigures
from pipeserve.runtime.run_times import RUN, STEP
from pipeserve_api.services import Services

LATENCIES = ("sync", "async", "pickup", "step")


async def collect(services: Services) -> dict[str, Any]:
    """The figures of ``GET /metrics``. Times are in seconds.

    The store counts every run but memory-only ones, which no other process knows; those of this one are added.
    """
    stored: ServiceFigures | None = None
    with suppress(StoreUnavailableError):  # then store_available says so
        if services.cache_teller is not None:
            await services.cache_teller.tell(anew=True)
        stored = await services.operations.figures()
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


def wants_text(accept: str) -> bool:
    """Whether an ``Accept`` header names one of Prometheus's formats."""
    return "application/openmetrics-text" in accept or "text/plain" in accept


def prometheus(figures: Mapping[str, Any], pipeline: str, accept: str) -> tuple[bytes, str]:
    """``figures`` in the text format that ``accept`` asks for, and its media type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(figures, pipeline))
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


class _Families(Collector):
    """One scrape's figures. A registry of its own for each: nothing is kept in the module."""

    def __init__(self, figures: Mapping[str, Any], pipeline: str) -> None:
        self._figures = figures
        self._pipeline = pipeline

    def collect(self) -> Iterator[Metric]:
        """The families, in base units."""
        figures = self._figures
        yield self._gauge(
            "pipeserve_store_available", "Whether the job store answers", float(figures["store_available"])
        )
        executions = CounterMetricFamily("pipeserve_executions", "Runs that ended", labels=["pipeline", "outcome"])
        for outcome, name in (("completed", "successful"), ("failed", "failed"), ("canceled", "canceled")):
            executions.add_metric([self._pipeline, outcome], figures[f"{name}_executions"])
        yield executions
        yield self._counter("pipeserve_execution_seconds", "Time in completed runs", figures["execution_seconds"])
        yield self._gauge("pipeserve_active_runs", "Synchronous runs of this process right now", figures["active_runs"])
        if figures["store_available"]:
            yield self._gauge("pipeserve_queue_depth", "Jobs that wait for a worker", figures["queue_depth"])
            yield self._gauge(
                "pipeserve_oldest_job_age_seconds", "How long the oldest due job has waited", figures["oldest_job_age"]
            )
            yield self._gauge(
                "pipeserve_drain_rate", "Jobs per second that workers took of late", figures["drain_rate"] or 0.0
            )
            yield self._counter(
                "pipeserve_fenced_writes",
                "Writes that were refused because they came from an attempt that had lost its job",
                figures["fenced_writes"],
            )
            yield self._counter(
                "pipeserve_store_emptied",
                "Times that all jobs were found gone from the store",
                figures["store_emptied"],
            )
            yield self._gauge("pipeserve_workers", "Worker processes", len(figures["workers"]))
            jobs = GaugeMetricFamily("pipeserve_jobs", "Kept jobs", labels=["pipeline", "status"])
            for status, count in figures["jobs_by_status"].items():
                jobs.add_metric([self._pipeline, status], count)
            yield jobs
        for name in ("queued", "processed", "failed_total", "dropped"):
            base = name.removesuffix("_total")
            yield self._counter(
                f"pipeserve_publisher_{base}", "Records of this process's runs", figures["publisher"][name]
            )
        yield self._gauge(
            "pipeserve_publisher_queue_depth", "Records that wait to be published", figures["publisher"]["queue_depth"]
        )
        breaker = GaugeMetricFamily(
            "pipeserve_publisher_breaker", "1 for the state that the breaker is in", labels=["pipeline", "state"]
        )
        for state in BreakerState:
            breaker.add_metric([self._pipeline, state.value], float(state == figures["publisher"]["breaker"]))
        yield breaker
        events = figures["event_buffer"]
        yield self._gauge("pipeserve_event_buffer_bytes", "Events of this process that wait", events["bytes"])
        yield self._counter("pipeserve_events_dropped", "Events dropped for want of room", events["dropped"])
        cache = figures["cache"]
        yield self._counter("pipeserve_cache_hits", "Step calls that used a cached result", cache["hits"])
        yield self._counter("pipeserve_cache_misses", "Step calls that can be cached and were not", cache["misses"])
        yield self._counter(
            "pipeserve_cache_saved_seconds", "What the calls took whose results were used", cache["saved_seconds"]
        )
        yield self._gauge("pipeserve_cache_entries", "Results that processes keep in memory", cache["entries"])
        yield self._gauge("pipeserve_cache_bytes", "About how much memory they take", cache["bytes"])
        yield self._quantiles("pipeserve_latency_seconds", "Latency by kind and quantile", "kind", figures["latency"])
        durations = figures["durations"]
        run = {self._pipeline: durations["run"]}
        yield self._quantiles("pipeserve_run_duration_seconds", "How long completed runs took", None, run)
        steps = durations["steps"]
        yield self._quantiles("pipeserve_step_duration_seconds", "How long calls of each step took", "step", steps)

    def _quantiles(
        self, name: str, text: str, label: str | None, found: Mapping[str, Mapping[str, float | None]]
    ) -> Metric:
        # A gauge, because a summary must carry a count and a sum, which percentiles alone do not.
        labels = ["pipeline", "quantile"] if label is None else ["pipeline", label, "quantile"]
        family = GaugeMetricFamily(name, text, labels=labels)
        for member, percentiles in found.items():
            for percentile, value in percentiles.items():
                if value is not None:
                    which = [] if label is None else [member]
                    family.add_metric([self._pipeline, *which, f"0.{percentile[1:]}"], value)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=["pipeline"])
        family.add_metric([self._pipeline], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=["pipeline"])
        family.add_metric([self._pipeline], value)
        return family
