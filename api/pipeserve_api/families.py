"""Prometheus's families of metrics, made from counts in fine buckets and from plain numbers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import fsum, inf

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from pipeserve.runtime.latency import middle

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Seconds: the upper bounds of all histograms."""

Buckets = Mapping[int, int]
"""How many took so long, in the buckets of :mod:`pipeserve.runtime.latency`."""


def cumulative(buckets: Buckets) -> list[tuple[str, float]]:
    """Counts in fine buckets as Prometheus wants them. A bucket goes where its middle lies: right to about 5 %."""
    counts = [0] * (len(BOUNDS) + 1)
    for bucket, count in buckets.items():
        counts[bisect_left(BOUNDS, middle(bucket))] += count
    seen, rows = 0, list[tuple[str, float]]()
    for bound, count in zip((*BOUNDS, inf), counts, strict=True):
        seen += count
        rows.append(("+Inf" if bound == inf else repr(bound), seen))
    return rows


def total(buckets: Buckets) -> float:
    """The sum of what was observed, to about 5 %. It never falls, in whatever order the buckets come."""
    return fsum(middle(bucket) * count for bucket, count in buckets.items())


class FamilyMaker:
    """Makes families whose samples share the values of some labels."""

    def __init__(self, **shared: str) -> None:
        self._names = tuple(shared)
        self._values = tuple(shared.values())

    def gauge(self, name: str, text: str, value: float) -> Metric:
        """One number that goes up and down."""
        return self.gauges(name, text, [], {(): value})

    def gauges(self, name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
        """Numbers that go up and down, by the values of ``labels``."""
        return self._filled(GaugeMetricFamily(name, text, labels=[*self._names, *labels]), values)

    def counter(self, name: str, text: str, value: float) -> Metric:
        """One count. Its sample's name ends with ``_total``."""
        return self.counters(name, text, [], {(): value})

    def counters(self, name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
        """Counts, by the values of ``labels``."""
        return self._filled(CounterMetricFamily(name, text, labels=[*self._names, *labels]), values)

    def histogram(self, name: str, text: str, buckets: Buckets) -> Metric:
        """One histogram of seconds."""
        return self.histograms(name, text, [], {(): buckets})

    def histograms(
        self, name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], Buckets]
    ) -> Metric:
        """Histograms of seconds, by the values of ``labels``."""
        family = HistogramMetricFamily(name, text, labels=[*self._names, *labels])
        for found, buckets in values.items():
            family.add_metric([*self._values, *found], cumulative(buckets), sum_value=total(buckets))
        return family

    def _filled(
        self, family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[tuple[str, ...], float]
    ) -> Metric:
        for found, value in values.items():
            family.add_metric([*self._values, *found], value)
        return family
