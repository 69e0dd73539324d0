"""Steps that take their process with them, or more than there is: the job ends, and the service goes on."""

from __future__ import annotations

import resource
import sys

import httpx
import psutil
import pytest
from tests.faults.installation import Installation, installation

pytestmark = pytest.mark.e2e

MIB = 1_048_576


async def serves(at: Installation) -> None:
    """A harmless job still completes."""
    job = await at.finished(await at.submit(how="well"))
    assert job["status"] == "completed", job
    assert job["outputs"] == {"output": "well"}


async def test_steps_that_end_their_process_are_tried_three_times_and_then_worker_lost():
    async with installation("misbehaving", apis=1, supervisors=1, concurrency=1) as at:
        for how in ("segfault", "exit"):
            before = len(at.begun())
            job_id = await at.submit(how=how, effects=str(at.effects))
            job = await at.finished(job_id)
            assert (job["status"], job["error"]["code"]) == ("failed", "worker_lost")
            assert [attempt for _, attempt, _ in at.begun()[before:]] == [1, 2, 3]
            types = [event["event_type"] for event in await at.log_of(job_id)]
            assert types.count("attempt_lost") == 3
            assert types[-1] == "pipeline_failed"
        await serves(at)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
async def test_a_step_that_needs_more_memory_than_its_process_may_have_fails_and_the_service_goes_on():
    async with installation("misbehaving", apis=1, supervisors=1) as at:
        for worker in at.workers():
            limit = psutil.Process(worker.pid).memory_info().vms + 256 * MIB
            resource.prlimit(worker.pid, resource.RLIMIT_AS, (limit, limit))
        job = await at.finished(await at.submit(how="memory", size=1024))
        assert job["status"] == "failed"
        assert job["error"]["code"] in ("step_failed", "worker_lost")
        await serves(at)


async def test_a_result_of_200_mib_becomes_an_artifact_and_the_service_goes_on():
    async with installation("misbehaving", apis=1, supervisors=1) as at:
        job_id = await at.submit(how="large", size=200)
        job = await at.finished(job_id)
        assert (job["status"], job["attempt"]) == ("completed", 1)
        artifact = job["outputs"]["output"]["$artifact"]
        assert artifact["size"] >= 200 * MIB
        async with httpx.AsyncClient(base_url=at.urls[0]) as http, http.stream("GET", artifact["href"]) as answer:
            assert answer.status_code == 200
            sent = 0
            async for chunk in answer.aiter_bytes():
                sent += len(chunk)
        assert sent == artifact["size"]
        await serves(at)
