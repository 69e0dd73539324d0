"""Tells of live jobs when they will have ended (``Job.eta``), from figures that are read at most once per second.

A look at a job must not become slow for it: what is not answered within a quarter of a second is left out, and a store
that is away makes no job unreadable.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

from pipeserve.errors import StoreUnavailableError
from pipeserve.jobs import Eta, Job, JobStatus
from pipeserve.runtime.plan import Plan
from pipeserve.runtime.ports import Operations, ServiceFigures
from pipeserve.runtime.tasks import end_tasks
from pipeserve.sdk.capture import Capture
from pipeserve_api.eta import Call, Estimator, Graph, Measured, Running, Waiting

_log = logging.getLogger(__name__)

FRESH = 1.0
"""Seconds for which figures that were read serve again, also the finding that there are none."""
PATIENCE = 0.25
"""Seconds for which a look at a job waits for them."""


class Forecast:
    """Enter it while jobs are shown.

    ``plan``: None for a dynamic pipeline. ``clock`` is in seconds and never goes back.
    """

    def __init__(
        self,
        operations: Operations,
        capture: Capture,
        plan: Plan | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._operations = operations
        # Without metrics nothing is measured; a memory-only run is nobody's business but this process's.
        self._measured = capture.metrics and not capture.memory_only
        self._sees_steps = plan is not None and capture.metadata
        self._graph = Graph() if plan is None else graph_of(plan)
        self._clock = clock
        self._estimator: Estimator | None = None
        self._read_at = float("-inf")
        self._asked_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading is not None:
            await end_tasks([self._reading])

    async def of(self, job: Job) -> Job:
        """``job`` with its ``eta``; as it is, if it does not live or nothing can be said."""
        if not self._measured or job.status not in (JobStatus.PENDING, JobStatus.RUNNING):
            return job
        estimator = await self._newest()
        found = None if estimator is None else estimator.of(outlook(job, datetime.now(UTC), steps=self._sees_steps))
        if found is None:
            return job
        p50, p90 = found
        return job.model_copy(update={"eta": Eta(p50=round(p50, 3), p90=round(p90, 3))})

    async def _newest(self) -> Estimator | None:
        now = self._clock()
        if self._reading is None and now - self._read_at >= FRESH:
            self._asked_at = now
            self._reading = asyncio.create_task(self._read(), name="forecast")
        if self._reading is not None:
            left = self._asked_at + PATIENCE - now
            # A reading that takes longer holds nobody up: what was read before serves until it ends, well or not.
            await asyncio.wait([self._reading], timeout=max(left, 0.0))
        return self._estimator

    async def _read(self) -> None:
        try:
            self._estimator = Estimator(self._graph, measured(await self._operations.figures()))
        except StoreUnavailableError:
            self._estimator = None
        except Exception:  # whatever is wrong with the figures, jobs can be read
            self._estimator = None
            _log.exception("the service's figures could not be read")
        finally:
            self._read_at, self._reading = self._clock(), None


def graph_of(plan: Plan) -> Graph:
    """A compiled pipeline's calls and what each waits for."""
    after: dict[int, list[str]] = {planned.index: [] for planned in plan.steps}
    for planned in plan.steps:
        for index in planned.downstream:
            after[index].append(planned.name)
    return Graph(
        [
            Call(planned.name, planned.spec.definition.name, tuple(after[planned.index]), planned.reads)
            for planned in plan.steps
        ]
    )


def measured(figures: ServiceFigures) -> Measured:
    """What of the figures tells how long jobs wait and run."""
    return Measured(
        durations=figures.durations,
        drain_rate=figures.drain_rate,
        slots=sum(worker.concurrency for worker in figures.workers),
        free_slots=sum(max(worker.concurrency - worker.busy, 0) for worker in figures.workers),
        oldest_job_age=figures.oldest_job_age,
    )


def outlook(job: Job, now: datetime, *, steps: bool) -> Waiting | Running:
    """Where the live job is. ``steps``: whether its record shows which steps have begun."""
    if job.status is JobStatus.PENDING:
        return Waiting(job.queue_position or 0, 0.0 if job.run_at is None else max(_since(now, job.run_at), 0.0))
    begun: dict[str, float | None] = {}
    began = job.started_at if job.attempt <= 1 else None
    for step in job.steps:
        if step.attempt != job.attempt:
            continue
        running = step.status == "running" and step.started_at is not None
        begun[step.name] = max(_since(step.started_at, now), 0.0) if running and step.started_at else None
        if job.attempt > 1 and step.started_at is not None:  # of a later attempt the record has only what it did
            began = step.started_at if began is None else min(began, step.started_at)
    elapsed = 0.0 if began is None else max(_since(began, now), 0.0)
    return Running(elapsed, begun if steps else None)


def _since(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds()
