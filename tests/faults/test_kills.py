"""SIGKILL at random moments under load: nothing that was accepted is lost, nothing is doubled."""

from __future__ import annotations

import asyncio
import random

import httpx
import pytest
from tests.faults.installation import Installation, Part, installation
from tests.faults.scenario import chance, loaded, losses
from tests.worker.harness import eventually

pytestmark = pytest.mark.e2e


async def moment(moments: random.Random, longest: float) -> None:
    """Some time: when a fault strikes is left to chance."""
    await asyncio.sleep(moments.uniform(0.1, longest))


async def revived(at: Installation, part: Part, moments: random.Random) -> None:
    """Kill a part and start it again a moment later; return when all is well."""
    part.kill()
    await moment(moments, 0.5)
    part.start()
    await at.ready()


async def test_worker_processes_that_are_killed_lose_and_double_nothing():
    moments = chance()
    async with installation() as at, loaded(at, moments) as load:
        for _ in range(8):
            await moment(moments, 1.0)
            victims = await eventually(at.workers, "there is a worker to kill")
            moments.choice(victims).kill()
    assert losses(load.history).keys() == {"worker_died"}, "the kills hit running jobs, and no lease had to run out"


async def test_supervisors_that_are_killed_lose_and_double_nothing():
    moments = chance()
    async with installation() as at, loaded(at, moments):
        for _ in range(2):
            await moment(moments, 1.0)
            await revived(at, moments.choice(at.supervisors), moments)


async def test_api_processes_that_are_killed_lose_and_double_nothing():
    moments = chance()
    # Many short jobs, so that some request is on its way when its process dies.
    async with installation(supervisors=1) as at, loaded(at, moments, clients=24, seconds=0.02):
        for _ in range(3):
            await moment(moments, 1.0)
            await revived(at, moments.choice(at.apis), moments)


async def test_a_store_that_is_killed_and_started_again_loses_and_doubles_nothing():
    moments = chance()
    async with installation() as at, loaded(at, moments):
        for _ in range(3):
            await moment(moments, 1.5)
            await at.restart_store()
        await at.ready()


async def test_all_parts_killed_in_turns_lose_and_double_nothing():
    moments = chance()
    async with installation() as at, loaded(at, moments):
        for _ in range(2):
            for what in moments.sample(["worker", "supervisor", "api", "store"], 4):
                await moment(moments, 0.5)
                match what:
                    case "worker":
                        moments.choice(await eventually(at.workers, "there is a worker to kill")).kill()
                    case "supervisor":
                        part = moments.choice(at.supervisors)
                        part.kill()
                        part.start()
                    case "api":
                        part = moments.choice(at.apis)
                        part.kill()
                        part.start()
                    case _:
                        await at.restart_store()
        await at.ready()


async def test_a_synchronous_call_whose_api_process_is_killed_ends_as_worker_lost():
    async with installation("held", supervisors=1, children=1) as at:
        parameters = {"effects": str(at.effects), "until": str(at.folder / "until")}

        async def call() -> None:
            async with httpx.AsyncClient(base_url=at.urls[0], timeout=30) as http:
                with pytest.raises(httpx.TransportError):
                    await http.post("/invoke", json={"parameters": parameters})

        calling = asyncio.create_task(call())
        await eventually(at.begun, "it runs")
        [(job_id, _, pid)] = at.begun()
        assert pid == at.apis[0].pid

        async def is_open() -> bool:
            async with httpx.AsyncClient(base_url=at.urls[1]) as http:
                return (await http.get(f"/jobs/{job_id}")).status_code == 200

        await eventually(is_open, "it is in the store, because it lasts")
        at.apis[0].kill()
        await calling
        async with httpx.AsyncClient(base_url=at.urls[1], timeout=30) as http:
            job = (await http.get(f"/jobs/{job_id}?wait=20")).json()
        assert (job["status"], job["error"]["code"]) == ("failed", "worker_lost")
        assert len(at.begun()) == 1, "nobody ran it again"
