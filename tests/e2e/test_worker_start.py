"""Worker processes that can't start: said once, not listed, and tried until they can."""

from __future__ import annotations

import pytest
from tests.worker.harness import eventually, scene

from pipeserve.jobs import JobStatus

pytestmark = pytest.mark.e2e


async def test_an_on_init_that_raises_is_told_in_full_once_and_tried_again():
    async with scene("slow_to_come") as at:
        may_start, done = at.folder / "may_start", at.folder / "done"
        job_id = await at.submit(path=str(done))
        with at.workers(processes=2, MAY_START=str(may_start)) as workers:
            await eventually(lambda: workers.log.count("could not start") >= 4, "some have tried")
            assert workers.log.count("Traceback") == 1
            assert "RuntimeError: no model here" in workers.log
            assert list((await at.jobs.operations.figures()).workers) == []
            assert (await at.job(job_id)).status is JobStatus.PENDING
            may_start.touch()
            [job] = await at.finished(job_id)
            assert job.status is JobStatus.COMPLETED
