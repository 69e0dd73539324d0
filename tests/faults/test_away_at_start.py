"""Processes that start while the store is away wait for it, and do not end what runs beside them."""

from __future__ import annotations

import pytest
from tests.faults.installation import installation
from tests.worker.harness import eventually

pytestmark = pytest.mark.e2e


async def test_api_processes_that_start_while_the_store_is_away_wait_for_it():
    async with installation(apis=1, supervisors=1, children=1, ZENML_SERVICE_WORKERS="2") as at:
        [api] = at.apis
        at.store.kill()
        for child in api.children():
            child.kill()
        await eventually(lambda: api.log.count("waiting for the store") >= 2, "their successors wait")
        assert api.running
        at.store.start()
        await at.ready()
        job = await at.finished(await at.submit(number=3))
        assert job["status"] == "completed"


async def test_parts_that_start_while_the_store_is_away_serve_once_it_is_there():
    async with installation(apis=1, supervisors=1, children=1) as at:
        for part in at.parts:
            part.kill()
        at.store.kill()
        for part in at.parts:
            part.start()
        for part in at.parts:
            await eventually(lambda part=part: "waiting for the store" in part.log, f"{part.name} waits")
        at.store.start()
        await at.ready()
        job = await at.finished(await at.submit(number=4))
        assert job["status"] == "completed"
