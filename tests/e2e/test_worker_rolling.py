"""A rolling restart under load: every job ends once, and no attempt is lost but by a drain."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from tests.worker.harness import Scene, eventually, lines, scene

from pipeserve.jobs import JobStatus
from pipeserve.runtime.tasks import end_tasks

pytestmark = pytest.mark.e2e


@contextlib.asynccontextmanager
async def steady_load(at: Scene, path: str) -> AsyncIterator[list[str]]:
    """Submits jobs of all kinds meanwhile, some ten a second; their ids."""
    jobs: list[str] = []

    async def load() -> None:
        for kind in itertools.cycle(["async", "thread", "process", "async", "thread"]):
            jobs.append(await at.submit(path=path, kind=kind, seconds=0.2))
            await asyncio.sleep(0.08)

    task = asyncio.create_task(load())
    try:
        yield jobs
    finally:
        await end_tasks([task])  # a single cancel may be swallowed by the Redis client
        if not task.cancelled():
            task.result()


@pytest.mark.timeout(120)
async def test_a_rolling_restart_of_all_workers_under_load_loses_and_doubles_nothing():
    async with scene("mixed") as at:
        done = at.folder / "done"
        options = {"processes": 2, "concurrency": 4, "PIPESERVE_DRAIN_SECONDS": "5"}
        with contextlib.ExitStack() as stack:
            supervisors = [stack.enter_context(at.workers(**options)) for _ in range(2)]
            await eventually(lambda: all(one.ready() == 2 for one in supervisors), "all are ready", seconds=60)
            async with steady_load(at, str(done)) as jobs:
                for turn in (0, 1, 0, 1):
                    before = len(lines(done))
                    await eventually(lambda before=before: len(lines(done)) >= before + 5, "jobs end")
                    supervisors[turn].signal(signal.SIGTERM)
                    assert await supervisors[turn].ended() == 0
                    new = supervisors[turn] = stack.enter_context(at.workers(**options))
                    await eventually(lambda new=new: new.ready() == 2, "the new ones are ready", seconds=60)
            finished = await at.finished(*jobs, seconds=60)

        assert Counter(job.status for job in finished) == {JobStatus.COMPLETED: len(jobs)}
        for job in finished:
            assert await at.terminal_events(job.job_id) == ["pipeline_completed"]
            assert set(await at.lost_reasons(job.job_id)) <= {"drained"}
        done_by = Counter(job_id for job_id, _, _ in lines(done))
        assert done_by == Counter(jobs), "each was done, and none twice"
