"""Figures as Prometheus text.

What the store counts is the whole service's: each process that is scraped tells the same, so a query takes the greatest
(``max by (pipeline)``), never the sum. Families whose help says "this process" are to be summed. ``docs/operations.md``
has a table of all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pipeserve.runtime.breaker import BreakerState
from pipeserve.runtime.latency import middle
from pipeserve.runtime.run_times import RUN, STEP

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Seconds: the upper bounds of all histograms."""

RequestFigures = Mapping[tuple[str, str, str], Mapping[int, int]]
"""Method, route and class of status → how many answers took so long (:mod:`pipeserve.runtime.latency`)."""


def cumulative(buckets: Mapping[int, int]) -> list[tuple[str, float]]:
    """Counts in fine buckets as Prometheus wants them. A bucket goes where its middle lies: right to about 5 %."""
    counts = [0] * (len(BOUNDS) + 1)
    for bucket, count in buckets.items():
        counts[bisect_left(BOUNDS, middle(bucket))] += count
    seen, rows = 0, list[tuple[str, float]]()
    for bound, count in zip((*BOUNDS, inf), counts, strict=True):
        seen += count
        rows.append(("+Inf" if bound == inf else repr(bound), seen))
    return rows


def total(buckets: Mapping[int, int]) -> float:
    """The sum of what was observed, to about 5 %. It never falls."""
    return sum(middle(bucket) * count for bucket, count in buckets.items())


def wants_text(accept: str) -> bool:
    """Whether an ``Accept`` header names one of Prometheus's formats."""
    return "application/openmetrics-text" in accept or "text/plain" in accept


def exposition(
    figures: Mapping[str, Any],
    durations: Mapping[str, Mapping[int, int]],
    requests: RequestFigures,
    pipeline: str,
    accept: str,
) -> tuple[bytes, str]:
    """``figures`` in the text format that ``accept`` asks for, and its media type.

    ``durations``: :attr:`ServiceFigures.durations`; ``requests``: what this process has answered.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(figures, durations, requests, pipeline))
    ProcessCollector(registry=registry)
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


class _Families(Collector):
    """One scrape's figures. A registry of its own for each: nothing is kept in the module."""

    def __init__(
        self,
        figures: Mapping[str, Any],
        durations: Mapping[str, Mapping[int, int]],
        requests: RequestFigures,
        pipeline: str,
    ) -> None:
        self._figures = figures
        self._durations = durations
        self._requests = requests
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
        yield from self._histograms()
        yield self._answers()

    def _histograms(self) -> Iterator[Metric]:
        durations = self._durations
        calls = HistogramMetricFamily(
            "pipeserve_call_duration_seconds",
            "From a request to its end, by way: sync in the API process, async from submission to the end of the job",
            labels=["pipeline", "mode"],
        )
        for mode in ("sync", "async"):
            self._add(calls, [mode], durations.get(mode, {}))
        yield calls
        pickup = HistogramMetricFamily(
            "pipeserve_pickup_duration_seconds", "From when a job is due to its start", labels=["pipeline"]
        )
        self._add(pickup, [], durations.get("pickup", {}))
        yield pickup
        runs = HistogramMetricFamily(
            "pipeserve_run_duration_seconds", "How long completed runs took", labels=["pipeline"]
        )
        self._add(runs, [], durations.get(RUN, {}))
        yield runs
        steps = HistogramMetricFamily(
            "pipeserve_step_duration_seconds", "How long completed calls of each step took", labels=["pipeline", "step"]
        )
        for kind in sorted(durations):
            if kind.startswith(STEP):
                self._add(steps, [kind.removeprefix(STEP)], durations[kind])
        yield steps

    def _add(self, family: HistogramMetricFamily, labels: list[str], buckets: Mapping[int, int]) -> None:
        family.add_metric([self._pipeline, *labels], cumulative(buckets), sum_value=total(buckets))

    def _answers(self) -> Metric:
        family = HistogramMetricFamily(
            "pipeserve_http_request_duration_seconds",
            "From a request to the end of its answer, in this process; a stream counts once it has begun",
            labels=["pipeline", "method", "route", "status"],
        )
        for (method, route, status), buckets in sorted(self._requests.items()):
            family.add_metric([self._pipeline, method, route, status], cumulative(buckets), sum_value=total(buckets))
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=["pipeline"])
        family.add_metric([self._pipeline], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=["pipeline"])
        family.add_metric([self._pipeline], value)
        return family
