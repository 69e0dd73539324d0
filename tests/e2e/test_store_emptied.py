"""FLUSHALL under a whole running service: it says so, shows it, and serves on."""

from __future__ import annotations

from pathlib import Path

import httpx
import psutil
import pytest
from tests.service import ROOT, ServeFixture
from tests.store.test_embedded import ask
from tests.store_fixtures import wait_until
from tests.worker.harness import lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

PIPELINES = ROOT / "tests" / "e2e" / "pipelines" / "jobs.py"


async def test_a_service_whose_store_is_emptied_says_so_and_serves_on(serve: ServeFixture, tmp_path: Path) -> None:
    started, until = tmp_path / "started", tmp_path / "until"
    body = {"parameters": {"started": str(started), "until": str(until)}}
    with serve(f"{PIPELINES}:hold", workers=1, PIPESERVE_LEASE_SECONDS="1") as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as http:

            async def submit() -> str:
                answer = await http.post("/invoke", json=body, headers={"Prefer": "respond-async"})
                assert answer.status_code == 202, answer.text
                return answer.json()["job_id"]

            async def status() -> dict[str, object]:
                return (await http.get("/status")).json()["store"]

            async def ends(job_id: str) -> bool:
                return (await http.get(f"/jobs/{job_id}")).json()["status"] == "completed"

            lost = await submit()
            await wait_until(lambda: lines(started), description="it runs")
            before = await status()
            assert (before["emptied_at"], before["warnings"]) == (None, [])

            await ask(str(before["url"]), "FLUSHALL")
            kept = await submit()  # at once
            assert (await http.get(f"/jobs/{lost}")).status_code == 404

            async def shown() -> bool:
                return (await status())["emptied_at"] is not None

            await wait_until(shown, description="the service shows it")
            assert (await http.get("/metrics")).json()["store_emptied"] == 1
            await wait_until(lambda: service.log.count("was emptied") == 2, description="API and worker have said it")

            await wait_until(lambda: len(lines(started)) == 2, description="the new job runs")
            psutil.Process(int(lines(started)[1][2])).kill()  # the process that takes its place finds its deployment
            await wait_until(lambda: len(lines(started)) == 3, description="it runs in another process", seconds=30)
            until.touch()
            await wait_until(lambda: ends(kept), description="the new job ends", seconds=30)
            after = await submit()
            await wait_until(lambda: ends(after), description="and so does the next", seconds=30)
            assert service.process.poll() is None
