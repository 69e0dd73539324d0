"""Batched steps of one runtime: calls of concurrent runs are gathered, and each gets its own result.

A batch belongs to no single request: what the function prints goes to the process's own log, and ``get_context()`` in
it has no job; ``get_context().members`` are the contexts of the requests, in the order of the items.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, cast

from pipeserve.runtime.batcher import Batcher, BatcherFigures
from pipeserve.runtime.capture.isolation import LogRouting, RoutedRun
from pipeserve.runtime.capture.veil import Veil
from pipeserve.runtime.step_spec import Call, StepSpec
from pipeserve.runtime.threads import ThreadPool
from pipeserve.sdk.context import LocalRun, StepContext, current_scope, run_of
from pipeserve.sdk.definition import Mode

_MOST_BATCHERS = 256


@dataclass(frozen=True, slots=True)
class _Item:
    """One request's call."""

    call: Call
    context: StepContext


@dataclass(frozen=True, slots=True)
class BatchedValue:
    """One request's result, and how many calls were gathered with its own."""

    value: Any
    size: int


class Batches:
    """A :class:`~pipeserve.runtime.batcher.Batcher` for each batched step; use it on the loop."""

    def __init__(
        self, threads: ThreadPool, pipeline_state: Any, active_runs: Callable[[], int], log_routing: LogRouting
    ) -> None:
        self._threads = threads
        self._pipeline_state = pipeline_state
        self._active_runs = active_runs
        self._log_routing = log_routing
        self._batchers: dict[StepSpec, Batcher[_Item, BatchedValue]] = {}

    async def call(self, call: Call, context: StepContext) -> BatchedValue:
        """The result of one call, computed together with others."""
        return await self._batcher(call.spec).call(_Item(call, context))

    def figures(self) -> dict[str, BatcherFigures]:
        """What each step's batcher has done, by step."""
        found: dict[str, BatcherFigures] = {}
        for spec, batcher in self._batchers.items():
            name, figures = spec.definition.name, batcher.figures()
            found[name] = found[name].plus(figures) if name in found else figures
        return found

    def review(self) -> None:
        """A run has ended: start the batches that waited for nobody else."""
        for batcher in list(self._batchers.values()):
            batcher.review()

    async def aclose(self) -> None:
        """End what is under way."""
        await asyncio.gather(*[batcher.aclose() for batcher in self._batchers.values()])

    def _batcher(self, spec: StepSpec) -> Batcher[_Item, BatchedValue]:
        batcher = self._batchers.get(spec)
        if batcher is None:
            policy = spec.definition.batch
            assert policy is not None

            async def run(items: list[_Item]) -> Sequence[BatchedValue | BaseException]:
                return await self._run(spec, items)

            batcher = Batcher(policy, run, others=self._active_runs)
            self._drop_idle()
            self._batchers[spec] = batcher
        return batcher

    def _drop_idle(self) -> None:
        """Keep their number bounded: a dynamic body may make steps anew in each run."""
        if len(self._batchers) >= _MOST_BATCHERS:
            idle = [spec for spec, batcher in self._batchers.items() if batcher.idle]
            for spec in idle[: len(idle) // 2 + 1]:  # the oldest first
                del self._batchers[spec]

    async def _run(self, spec: StepSpec, items: list[_Item]) -> list[BatchedValue | BaseException]:
        lists = [list(column) for column in zip(*[item.call.args for item in items], strict=True)]
        named = {name: [item.call.kwargs[name] for item in items] for name in items[0].call.kwargs}
        members = tuple(item.context for item in items)
        run = _BatchRun(self._pipeline_state, self._log_routing, members)
        scope = StepContext(run, spec.definition.name)
        scope.members = members
        token = current_scope.set(scope)
        try:
            with run.masked(spec, scope):
                if spec.mode is Mode.ASYNC:
                    results = await spec.fn(*lists, **named)
                else:
                    results = await self._threads.call(lambda: spec.fn(*lists, **named))
                found = _as_list(spec, results)
                run.complete(spec, found)
        finally:
            current_scope.reset(token)
        return [result if isinstance(result, BaseException) else BatchedValue(result, len(items)) for result in found]


class _BatchRun(LocalRun):
    """The run of a batch: of no single job."""

    job_id = "batch"
    run_name = "batch"
    followed = False
    log_limit = 0
    draws = False

    def __init__(self, pipeline_state: Any, log_routing: LogRouting, members: Sequence[StepContext]) -> None:
        super().__init__(pipeline_state)
        self.log_routing = log_routing
        self.veil: Veil | None = None
        for member in members:
            veil = cast(RoutedRun, run_of(member)).veil
            if veil is not None:
                self.veil = self.veil or Veil()
                self.veil.masks.include(veil.masks)

    @contextlib.contextmanager
    def masked(self, spec: StepSpec, scope: StepContext) -> Generator[None]:
        """While entered, what the batch writes waits for its results, if these are masked."""
        if self.veil is None or spec.masking is None:
            yield
            return
        spec.masking.begin(self.veil, spec.definition.name, {}, streams=False)
        try:
            yield
        finally:
            scope.end_print()
            self.veil.end(spec.definition.name)

    def complete(self, spec: StepSpec, results: Sequence[Any]) -> None:
        """These are its results."""
        if self.veil is not None and spec.masking is not None:
            for result in results:
                spec.masking.complete(self.veil, result)

    def remaining(self) -> float:
        """Each request has its own deadline."""
        return math.inf


def _as_list(spec: StepSpec, results: Any) -> list[Any]:
    if isinstance(results, (str, bytes, Mapping, Set)) or not (
        hasattr(results, "__len__") and hasattr(results, "__iter__")
    ):
        kind = type(cast(object, results)).__name__
        raise TypeError(
            f"batched step {spec.definition.name!r} returned a {kind}; it must return a list, with one result for each "
            "item"
        )
    return list(results)
