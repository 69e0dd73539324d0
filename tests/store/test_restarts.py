"""A store that is killed while connections are being written to, on the loop that the services run on."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest
import uvloop
from tests.store.servers import Server

from pipeserve.errors import StoreUnavailableError
from pipeserve.settings import StoreSettings
from pipeserve.store import open_store


@pytest.mark.e2e
def test_whoever_subscribes_while_the_store_dies_is_told_that_it_is_away_and_nothing_else(short_dir: Path) -> None:
    async def main() -> int:
        served = 0
        stop = asyncio.Event()
        async with Server(short_dir, "--appendonly", "yes") as server:
            settings = StoreSettings.from_environment(redis_url=server.url)
            async with open_store(settings) as store, store.deployment("deployment") as deployment:

                async def subscribe() -> None:
                    nonlocal served
                    while not stop.is_set():
                        try:
                            async with deployment.hub.subscribe(uuid.uuid4().hex):
                                served += 1
                        except StoreUnavailableError:
                            await asyncio.sleep(0.01)

                async with asyncio.TaskGroup() as group:
                    for _ in range(48):
                        group.create_task(subscribe())
                    for _ in range(12):
                        before = served
                        while served < before + 500:  # noqa: ASYNC110 - there is no event for the 500th
                            await asyncio.sleep(0.01)
                        server.kill()
                        await server.start()
                    stop.set()
        return served

    assert uvloop.run(main()) > 0
