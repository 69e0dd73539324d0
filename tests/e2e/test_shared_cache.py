"""``Cache(scope="shared")``: one process computes, and every other of the deployment uses it, also after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.service import ServeFixture
from tests.worker.harness import eventually, lines, scene

from pipeserve.settings import StoreSettings
from pipeserve.store import open_store

pytestmark = pytest.mark.e2e

DICTIONARY = f"{Path(__file__).parent / 'pipelines' / 'durable.py'}:dictionary"


async def test_what_one_worker_process_computed_the_others_use():
    async with scene(DICTIONARY) as at:
        with at.workers(processes=2, concurrency=1) as workers:
            await eventually(lambda: workers.ready() == 2, "both are ready")
            parameters: dict[str, Any] = {"folder": str(at.folder), "word": "tea"}
            [first] = await at.finished(await at.submit(**parameters))
            assert first.steps[0].cache is not None
            assert (first.steps[0].cache.status, first.steps[0].cache.stored) == ("miss", True)
            await eventually(lambda: at.valkey.client().keys("*:cache:*"), "the result is in the store")

            async def used_elsewhere() -> Any:
                jobs = await at.finished(*[await at.submit(**parameters) for _ in range(4)])
                return next((job for job in jobs if job.worker != first.worker), None)

            other = await eventually(used_elsewhere, "the other process had a job too")
            assert other.outputs == first.outputs == {"output": {"tea": 3}}
            receipt = other.steps[0].cache
            assert receipt.status in ("shared_hit", "hit"), "from the store, or kept since an earlier one of the four"
            assert receipt.saved == pytest.approx(first.steps[0].duration, rel=1)
        assert len(lines(at.folder / "look_up")) == 1


async def test_api_processes_share_results_which_outlive_the_service(serve: ServeFixture, tmp_path: Path):
    data = tmp_path / "data"
    body = {"parameters": {"folder": str(tmp_path), "word": "tea"}}

    def call(url: str) -> str:
        with httpx.Client(base_url=url, timeout=10) as http:  # a connection of its own: any process may take it
            answer = http.post("/invoke", json=body)
            assert answer.json()["outputs"] == {"output": {"tea": 3}}
            return answer.headers["cache-status"]

    with serve(DICTIONARY, PIPESERVE_DATA_DIR=str(data), ZENML_SERVICE_WORKERS="2") as service:
        assert call(service.url) == "look_up;fwd=uri-miss;stored"
        settings = StoreSettings.from_environment(data_dir=data)
        async with open_store(settings) as store, store.deployment("any") as any_deployment:

            async def kept() -> Any:
                keys = any_deployment.redis.keys("*:cache:*")
                return await keys

            await eventually(kept, "the result is in the store")
        statuses: list[str] = []

        def shared() -> bool:
            statuses.append(call(service.url))
            return statuses[-1].endswith(";detail=shared")

        await eventually(shared, "the other process has answered")
        assert all(status.startswith("look_up;hit;ttl=") for status in statuses)

    with serve(DICTIONARY, PIPESERVE_DATA_DIR=str(data)) as service:
        assert call(service.url).endswith(";detail=shared")
        assert not call(service.url).endswith(";detail=shared"), "now it is in the process too"
    assert len(lines(tmp_path / "look_up")) == 1
