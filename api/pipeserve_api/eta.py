"""When a live job will have ended, from what the service has measured. Pure; times are in seconds.

A job's way is sampled many times. While it waits: the turns that are taken before its own, at the rate at which workers
take jobs. While a static pipeline runs: a duration of each step that is still to end, along the graph, so that parallel
branches overlap; steps are taken to be independent. Where steps were not measured, and in a dynamic pipeline: a
duration of the whole run. What runs already has lasted for a while, and only longer durations are drawn for it.

The samples are the quantiles of each distribution in an order that never changes: the same figures give the same
answer.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist

from pipeserve.runtime.latency import GROWTH
from pipeserve.runtime.run_times import RUN, STEP

MOST_SAMPLES = 200
MOST_DRAWS = 2000
"""Of one answer: a pipeline of very many steps is sampled less often."""
ENOUGH = 5
"""Observations below which a distribution is not known."""
BACKLOG = 60.0
"""Seconds for which jobs must have waited before the rate at which they were taken is all that workers can do."""
_TAIL = -0.5  # P(longer than t) falls as t**-2 beyond all that was observed
_LEAST_SAMPLES = 20


@dataclass(frozen=True, slots=True)
class Call:
    """One step call of a static pipeline."""

    name: str
    step: str
    """The name of its definition."""
    after: tuple[str, ...] = ()
    """The calls that must have ended before it begins."""
    beside: tuple[str, ...] = ()
    """The calls that it begins and ends with, because it reads what they yield."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the service has measured of itself."""

    durations: Mapping[str, Mapping[int, int]] = field(default_factory=dict[str, Mapping[int, int]])
    """Histograms by kind (:mod:`pipeserve.runtime.latency`, :mod:`pipeserve.runtime.run_times`)."""
    drain_rate: float | None = None
    """Jobs that workers took per second of the last minute."""
    slots: int = 0
    """Jobs that all workers can run at once."""
    free_slots: int = 0
    oldest_job_age: float = 0.0
    """For how long the oldest due job has waited."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that no worker has yet."""

    position: int = 0
    """In the queue, from 0."""
    due_in: float = 0.0
    """Seconds before which it is not started."""


@dataclass(frozen=True, slots=True)
class Running:
    """A job in hand."""

    elapsed: float
    """For how long its attempt has run."""
    steps: Mapping[str, float | None] | None = None
    """The calls that have begun: for how long each has run; None: it has ended. None for all: that is not known."""


Range = tuple[float, float]
"""The 50th and the 90th percentile."""


class Durations:
    """One histogram, to draw from. Within a bucket all durations are taken to be as likely, on its scale."""

    def __init__(self, buckets: Mapping[int, int]) -> None:
        self._buckets = sorted(bucket for bucket, count in buckets.items() if count > 0)
        self._seen: list[int] = []
        self.count = 0
        for bucket in self._buckets:
            self.count += buckets[bucket]
            self._seen.append(self.count)

    @cached_property
    def mean(self) -> float:
        """To the middle of each bucket."""
        counts = zip(self._buckets, [0, *self._seen], self._seen, strict=False)
        return sum((seen - before) * GROWTH ** (bucket - 0.5) for bucket, before, seen in counts) / self.count

    def at(self, share: float) -> float:
        """The duration that ``share`` (0 to 1) of those observed do not exceed."""
        rank = share * self.count
        place = min(bisect_left(self._seen, rank), len(self._seen) - 1)
        before = self._seen[place - 1] if place else 0
        within = min(max((rank - before) / (self._seen[place] - before), 0.0), 1.0)
        return GROWTH ** (self._buckets[place] - 1 + within)

    def share_below(self, seconds: float) -> float:
        """The share of those observed that ``seconds`` exceeds: :meth:`at` the other way round."""
        if seconds <= 0.0:
            return 0.0
        exponent = math.log(seconds, GROWTH)
        place = bisect_left(self._buckets, exponent)
        if place == len(self._buckets):
            return 1.0
        before = self._seen[place - 1] if place else 0
        within = max(exponent - (self._buckets[place] - 1), 0.0)
        return (before + within * (self._seen[place] - before)) / self.count

    def left(self, elapsed: float, shares: Iterable[float]) -> list[float]:
        """How much longer what has lasted ``elapsed`` will last, at each share (0 to 1, not included) of the chances.

        Beyond all that was observed, it is likely to last longer the longer it has lasted.
        """
        below = self.share_below(elapsed)
        if below >= 1.0:
            return [elapsed * ((1.0 - share) ** _TAIL - 1.0) for share in shares]
        return [max(self.at(below + share * (1.0 - below)) - elapsed, 0.0) for share in shares]


class Graph:
    """A static pipeline's calls, each after those that it comes after, and the order in which each is sampled.

    A dynamic pipeline has none.
    """

    def __init__(self, calls: Sequence[Call] = ()) -> None:
        self.calls = tuple(calls)
        size = MOST_DRAWS // max(len(self.calls), 1)
        self.samples = min(max(size, _LEAST_SAMPLES), MOST_SAMPLES)
        self.shares = [(place + 0.5) / self.samples for place in range(self.samples)]
        orders = [self._order(seed) for seed in range(len(self.calls) + 1)]
        self.turns = [NormalDist().inv_cdf(self.shares[place]) for place in orders.pop()]
        self.orders: dict[str, list[int]] = {call.name: order for call, order in zip(self.calls, orders, strict=True)}

    def _order(self, seed: int) -> list[int]:
        places = list(range(self.samples))
        random.Random(seed).shuffle(places)
        return places

    def with_begun(self, steps: Mapping[str, float | None]) -> dict[str, float | None]:
        """``steps`` and what must have ended before they began; a record may not list all."""
        begun = dict(steps)
        for call in reversed(self.calls):
            if call.name in begun:
                for name in call.after:
                    begun.setdefault(name, None)
                if begun[call.name] is None:
                    for name in call.beside:
                        begun.setdefault(name, None)
        return begun


class Estimator:
    """Answers for all jobs of a pipeline from one reading of the figures."""

    def __init__(self, graph: Graph, measured: Measured) -> None:
        self._graph = graph
        self._measured = measured
        self._known = {
            kind: durations
            for kind, buckets in measured.durations.items()
            if (durations := Durations(buckets)).count >= ENOUGH
        }
        self._by_step: dict[str, list[float]] = {}

    def of(self, job: Waiting | Running) -> Range | None:
        """In how many seconds the job will have ended. None: too little is known."""
        samples = self._remaining(job) if isinstance(job, Running) else self._ahead(job)
        if samples is None:
            return None
        ordered = sorted(samples)
        return ordered[math.ceil(0.5 * len(ordered)) - 1], ordered[math.ceil(0.9 * len(ordered)) - 1]

    # ---- waiting

    def _ahead(self, job: Waiting) -> list[float] | None:
        waits, runs = self._waits(job), self._whole_runs
        return None if waits is None or runs is None else list(map(float.__add__, waits, runs))

    def _waits(self, job: Waiting) -> list[float] | None:
        turns = max(job.position + 1 - self._measured.free_slots, 0)
        if turns == 0:
            return [float(job.due_in)] * self._graph.samples
        rate = self._rate
        if rate is None:
            return None
        # The n-th of events that come at random comes after about n of their mean distances, give or take sqrt(n).
        spread = math.sqrt(turns)
        return [job.due_in + max(turns + spread * turn, 0.0) / rate for turn in self._graph.turns]

    @cached_property
    def _rate(self) -> float | None:
        """Jobs that workers take per second while enough of them wait."""
        measured = self._measured
        drained = measured.drain_rate or None
        if measured.slots == 0 or (drained is not None and measured.oldest_job_age >= BACKLOG):
            return drained
        # They had less to do than they can: what they took says how many came.
        run = self._known.get(RUN)
        able = None if run is None else measured.slots / run.mean
        return max((rate for rate in (drained, able) if rate is not None), default=None)

    # ---- running

    @cached_property
    def _whole_runs(self) -> list[float] | None:
        found = self._along_graph({})
        return self._by_run(0.0) if found is None else found

    def _remaining(self, job: Running) -> list[float] | None:
        found = None if job.steps is None else self._along_graph(self._graph.with_begun(job.steps))
        return self._by_run(job.elapsed) if found is None else found

    def _by_run(self, elapsed: float) -> list[float] | None:
        run = self._known.get(RUN)
        return None if run is None else run.left(elapsed, self._graph.shares)

    def _along_graph(self, begun: Mapping[str, float | None]) -> list[float] | None:
        """When the last of the calls ends, in each sample. None: one that is still to end was not measured."""
        graph = self._graph
        if not graph.calls:
            return None
        now = [0.0] * graph.samples
        last = now
        begins: dict[str, list[float]] = {}
        ends: dict[str, list[float]] = {}
        for call in graph.calls:
            elapsed = begun.get(call.name, 0.0)
            if elapsed is None:
                continue
            drawn = self._drawn(call, elapsed)
            if drawn is None:
                return None
            begin = now
            if call.name not in begun:
                begin = _latest(now, [ends[name] for name in call.after if name in ends])
                begin = _latest(begin, [begins[name] for name in call.beside if name in begins])
            end = list(map(float.__add__, begin, drawn))
            end = _latest(end, [ends[name] for name in call.beside if name in ends])
            begins[call.name], ends[call.name] = begin, end
            last = _latest(last, [end])
        return last

    def _drawn(self, call: Call, elapsed: float) -> list[float] | None:
        """How much longer the call lasts, in each sample."""
        order = self._graph.orders[call.name]
        drawn = self._by_step.get(call.step) if elapsed == 0.0 else None
        if drawn is None:
            durations = self._known.get(STEP + call.step)
            if durations is None:
                return None
            drawn = durations.left(elapsed, self._graph.shares)
            if elapsed == 0.0:
                self._by_step[call.step] = drawn
        return [drawn[place] for place in order]


def _latest(times: list[float], others: Iterable[list[float]]) -> list[float]:
    for other in others:
        times = list(map(max, times, other))
    return times
