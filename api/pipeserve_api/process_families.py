"""What this process alone knows, as Prometheus's families. They have the label ``process``.

Processes that share a port (``ZENML_SERVICE_WORKERS``) answer a scrape in turn. Without the label their counts would
look like one that falls and rises.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pipeserve.runtime.breaker import BreakerState
from pipeserve_api.families import FamilyMaker
from pipeserve_api.figures_reader import Reading
from pipeserve_api.services import Services


class ProcessFamilies(Collector):
    """One scrape's figures."""

    def __init__(self, services: Services, reading: Reading) -> None:
        self._services = services
        self._reading = reading
        self._process = str(os.getpid())
        self._make = FamilyMaker(pipeline=services.definition.name, process=self._process)

    def collect(self) -> Iterator[Metric]:
        """The families, in base units."""
        yield from self._store()
        yield from self._requests()
        yield from self._publisher()
        yield from self._memory_only()
        yield from self._system()

    def _store(self) -> Iterator[Metric]:
        available = self._reading.figures is not None
        yield self._make.gauge("pipeserve_store_available", "Whether the job store answers", float(available))
        yield self._make.gauge(
            "pipeserve_store_answer_seconds",
            "How long it took to answer this scrape, or was waited for",
            self._reading.seconds,
        )

    def _requests(self) -> Iterator[Metric]:
        requests, make = self._services.requests, self._make
        yield make.histograms(
            "pipeserve_http_request_duration_seconds",
            "From a request to the end of its answer; a stream counts once it has begun",
            ["method", "route", "status"],
            dict(sorted(requests.answers.items())),
        )
        problems = {(code,): float(count) for code, count in sorted(requests.problems.items())}
        yield make.counters("pipeserve_http_problems", "Answers that were problems", ["code"], problems)
        yield make.gauge("pipeserve_active_runs", "Synchronous runs right now", self._services.runtime.active)
        yield make.gauge("pipeserve_open_streams", "Event streams that are open", requests.streams)
        yield make.gauge("pipeserve_open_sockets", "WebSockets that are open", requests.sockets)

    def _publisher(self) -> Iterator[Metric]:
        inline, make = self._services.inline, self._make
        publisher, events = inline.publisher_figures(), inline.event_figures()
        for name, text in (
            ("queued", "Records of synchronous runs that were to be written"),
            ("processed", "Those that were written"),
            ("failed_total", "Tries to write them that failed"),
            ("dropped", "Those that were given up"),
        ):
            yield make.counter(f"pipeserve_publisher_{name.removesuffix('_total')}", text, publisher[name])
        yield make.gauge("pipeserve_publisher_queue_depth", "Records that wait", publisher["queue_depth"])
        yield make.gauges(
            "pipeserve_publisher_breaker",
            "1 for the state that the breaker is in",
            ["state"],
            {(state.value,): float(state == publisher["breaker"]) for state in BreakerState},
        )
        yield make.gauge("pipeserve_event_buffer_bytes", "Events that wait for the store", events["bytes"])
        yield make.counter("pipeserve_events_dropped", "Events dropped for want of room", events["dropped"])

    def _memory_only(self) -> Iterator[Metric]:
        """What memory-only runs did. No store counts them."""
        local, make = self._services.inline.figures(), self._make
        ended = {("completed",): local.completed, ("failed",): local.failed, ("canceled",): local.canceled}
        yield make.counters("pipeserve_memory_only_executions", "Memory-only runs that ended", ["outcome"], ended)
        for name, text in (
            ("cache_hits", "Step calls of memory-only runs that used a cached result"),
            ("cache_misses", "Step calls of memory-only runs that can be cached and were not"),
        ):
            yield make.counter(f"pipeserve_memory_only_{name}", text, local.counters.get(name, 0.0))

    def _system(self) -> Iterator[Metric]:
        yield self._make.histogram(
            "pipeserve_event_loop_lag_seconds",
            "How late the event loop comes to a timer, looked at twice a second",
            self._services.loop_lag.buckets,
        )
        for family in ProcessCollector(registry=None).collect():
            for at, sample in enumerate(family.samples):
                family.samples[at] = sample._replace(labels={**sample.labels, "process": self._process})
            yield family
