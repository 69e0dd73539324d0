"""FLUSHALL under load: what was accepted before is gone, which is said; what is accepted after keeps all promises."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.faults.history import History
from tests.faults.installation import installation, now
from tests.faults.scenario import chance, judge, loading
from tests.worker.harness import eventually

pytestmark = pytest.mark.e2e


def since(history: History, moment: float) -> History:
    """What concerns the jobs that were first asked for after ``moment``."""
    accepted = [each for each in history.accepted if each.sent_at > moment]
    known = {each.job_id for each in accepted}
    return replace(
        history,
        accepted=accepted,
        cancels=[each for each in history.cancels if each.job_id in known],
        sightings=[each for each in history.sightings if each.job_id in known],
        effects=[each for each in history.effects if each.job_id in known],
        listed={job_id: request for job_id, request in history.listed.items() if job_id in known},
    )


async def test_a_store_that_is_emptied_under_load_is_said_and_keeps_its_promises_afterwards():
    moments = chance()
    async with installation() as at:
        async with loading(at, moments) as load:
            await asyncio.sleep(moments.uniform(0.5, 1.5))
            with at.store.client() as client:
                client.flushall()
            emptied = now()

            async def is_shown() -> bool:
                return (await at.get("/status"))["store"]["emptied_at"] is not None

            await eventually(is_shown, "the service shows it")
            await at.ready()
            await eventually(
                lambda: sum(each.sent_at > emptied for each in load.history.accepted) > 50, "it accepts jobs again"
            )
        history = since(await load.collect(at.effects), emptied)
        judge(history)
        assert len(history.accepted) > 50
        for part in at.parts:
            assert "was emptied" in part.log, f"{part.name} says so"
