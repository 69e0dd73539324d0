"""A worker serves the code that was deployed, or says why it doesn't."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.worker.harness import PIPELINES, eventually, scene

pytestmark = pytest.mark.e2e

CHANGED = 'return "written differently"'


async def test_a_worker_refuses_a_deployment_whose_code_it_does_not_have(tmp_path: Path):
    copy = tmp_path / "copied_jobs.py"
    copy.write_text(PIPELINES.read_text())
    async with scene(f"{copy}:quick") as at:
        job_id = await at.submit(path=str(at.folder / "done"))
        copy.write_text(PIPELINES.read_text().replace('return "written"', CHANGED))
        with at.workers(processes=2) as workers:
            assert await workers.ended() == 2
            log = workers.log
        assert "refuses a deployment whose code it does not have" in log
        assert at.deployment.fingerprint[:12] in log
        assert f"pipeserve deploy {copy}:quick" in log
        assert log.count("refuses a deployment") == 1, "said once, not once per process"
        assert (await at.job(job_id)).attempt == 0, "the job still waits"

        copy.write_text(PIPELINES.read_text())
        with at.workers():
            [job] = await at.finished(job_id)
            assert job.outputs == {"output": "written"}


async def test_code_that_is_not_there_is_said_so(tmp_path: Path):
    copy = tmp_path / "removed_jobs.py"
    copy.write_text(PIPELINES.read_text())
    async with scene(f"{copy}:quick") as at:
        copy.unlink()
        with at.workers() as workers:
            assert await workers.ended() == 2
            assert f"there is no file {copy}" in workers.log


async def test_bad_parameters_end_their_job_and_not_the_worker():
    async with scene("quick") as at:
        with at.workers() as workers:
            bad = await at.submit(path=1, colour="red")
            good = await at.submit(path=str(at.folder / "done"))
            failed, completed = await at.finished(bad, good)
            assert failed.error is not None
            assert failed.error.code == "invalid_parameters"
            assert {item["name"] for item in failed.error.errors or []} == {"path", "colour"}
            assert completed.outputs == {"output": "written"}
            assert await at.terminal_events(bad) == ["pipeline_failed"]
            await eventually(lambda: workers.ready() == 1, "the same worker goes on")
