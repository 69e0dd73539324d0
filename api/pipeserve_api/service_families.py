"""What the store counts over all processes, as Prometheus's families. Every API process tells the same."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pipeserve.runtime.ports import ServiceFigures
from pipeserve.runtime.run_times import RUN, STEP
from pipeserve_api.families import FamilyMaker


class ServiceFamilies(Collector):
    """One scrape's figures."""

    def __init__(self, pipeline: str, figures: ServiceFigures) -> None:
        self._figures = figures
        self._make = FamilyMaker(pipeline=pipeline)

    def collect(self) -> Iterator[Metric]:
        """The families, in base units."""
        yield from self._runs()
        yield from self._durations()
        yield from self._queue()
        yield from self._cache()
        yield from self._store()

    def _runs(self) -> Iterator[Metric]:
        figures, make = self._figures, self._make
        ended = {("completed",): figures.completed, ("failed",): figures.failed, ("canceled",): figures.canceled}
        yield make.counters("pipeserve_executions", "Runs that ended", ["outcome"], ended)
        yield make.counter("pipeserve_execution_seconds", "Time in completed runs", figures.execution_seconds)

    def _durations(self) -> Iterator[Metric]:
        durations, make = self._figures.durations, self._make
        yield make.histograms(
            "pipeserve_call_duration_seconds",
            "From a request to its end, by way: sync in the API process, async from submission to the end of the job",
            ["mode"],
            {(mode,): durations.get(mode, {}) for mode in ("sync", "async")},
        )
        yield make.histogram(
            "pipeserve_pickup_duration_seconds", "From when a job is due to its start", durations.get("pickup", {})
        )
        yield make.histogram("pipeserve_run_duration_seconds", "How long completed runs took", durations.get(RUN, {}))
        yield make.histograms(
            "pipeserve_step_duration_seconds",
            "How long completed calls of each step took",
            ["step"],
            {(kind.removeprefix(STEP),): durations[kind] for kind in sorted(durations) if kind.startswith(STEP)},
        )

    def _queue(self) -> Iterator[Metric]:
        figures, make = self._figures, self._make
        yield make.gauge("pipeserve_queue_depth", "Jobs that wait for a worker", figures.queue_depth)
        yield make.gauge(
            "pipeserve_oldest_job_age_seconds", "How long the oldest due job has waited", figures.oldest_job_age
        )
        yield make.gauge("pipeserve_drain_rate", "Jobs per second that workers took of late", figures.drain_rate or 0.0)
        kept = {(status,): float(count) for status, count in figures.jobs_by_status.items()}
        yield make.gauges("pipeserve_jobs", "Kept jobs", ["status"], kept)
        workers = figures.workers
        yield make.gauge("pipeserve_workers", "Worker processes", len(workers))
        yield make.gauge(
            "pipeserve_worker_slots",
            "Jobs that the workers can run at the same time",
            sum(worker.concurrency for worker in workers),
        )
        yield make.gauge(
            "pipeserve_worker_slots_busy", "Jobs that the workers run now", sum(worker.busy for worker in workers)
        )

    def _cache(self) -> Iterator[Metric]:
        counters, kept, make = self._figures.counters, self._figures.cache, self._make
        yield make.counter(
            "pipeserve_cache_hits", "Step calls that used a cached result", counters.get("cache_hits", 0)
        )
        yield make.counter(
            "pipeserve_cache_misses", "Step calls that can be cached and were not", counters.get("cache_misses", 0)
        )
        yield make.counter(
            "pipeserve_cache_saved_seconds",
            "What the calls took whose results were used",
            counters.get("cache_saved_seconds", 0),
        )
        yield make.gauge("pipeserve_cache_entries", "Results that processes keep in memory", kept.entries)
        yield make.gauge("pipeserve_cache_bytes", "About how much memory they take", kept.bytes)

    def _store(self) -> Iterator[Metric]:
        figures, make = self._figures, self._make
        yield make.counter(
            "pipeserve_fenced_writes",
            "Writes that were refused because they came from an attempt that had lost its job",
            figures.counters.get("fenced_writes", 0),
        )
        # No count: emptied once more, a store counts to one once more, which looks like nothing.
        yield make.gauge(
            "pipeserve_store_emptied_timestamp_seconds",
            "When all jobs were last found gone from the store; 0: never",
            figures.emptied_at or 0.0,
        )
