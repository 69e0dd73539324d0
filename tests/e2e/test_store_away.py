"""The store is frozen, gone or slow: synchronous calls don't notice, and their recording recovers by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.api.test_process import PIPELINE, Place, free_port, running
from tests.store.test_embedded import server_pid
from tests.store_fixtures import wait_until
from tests.worker.harness import Valkey

from pipeserve.jobs import JobStatus
from pipeserve.sdk.snapshot import snapshot
from pipeserve.sdk.target import load_target
from pipeserve.settings import StoreSettings
from pipeserve.store import open_store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

PATIENCE = 3.0
"""Seconds that a call may take here: less than anything that waits for a store that does not answer."""


@pytest.fixture
def valkey(short_dir: Path):
    server = Valkey(short_dir)
    server.start()
    yield server
    server.kill()


@contextlib.asynccontextmanager
async def deployed(store_url: str, folder: Path, **environment: str) -> AsyncIterator[Place]:
    """A deployment in the store, and the environment of a service whose breaker is quick to open and to probe."""
    file = folder / "naps_pipeline.py"
    file.write_text(PIPELINE)
    loaded = load_target(f"{file}:naps")
    async with open_store(StoreSettings.from_environment(redis_url=store_url)) as store:
        deployment = await store.registry.save(snapshot(loaded.pipeline, loaded.target))
        given = {name: value for name, value in os.environ.items() if not name.startswith(("ZENML_", "PIPESERVE_"))}
        given |= {
            "PIPESERVE_REDIS_URL": store_url,
            "ZENML_PIPELINE_DEPLOYMENT_ID": deployment.id,
            "ZENML_SERVICE_PORT": str(free_port()),
            "ZENML_RT_CB_MIN_EVENTS": "2",
            "ZENML_RT_CB_OPEN_SECONDS": "0.5",
        }
        yield Place(deployment, file, given | environment, store)
    sys.modules.pop("naps_pipeline", None)


class Caller:
    """Calls the service and looks at its figures."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.http = httpx.AsyncClient(base_url=place.url, timeout=PATIENCE)

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def call(self, times: int = 1) -> str:
        """Call so often, one after the other; the last call's job id."""
        job_id = ""
        for _ in range(times):
            answer = await self.http.post("/invoke", json={})
            assert answer.status_code == 200, answer.text
            job_id = answer.json()["job_id"]
        return job_id

    async def publisher(self) -> dict[str, Any]:
        """The publisher's figures. (Those of the store come with them, and may be long in coming.)"""
        return (await self.http.get("/metrics", timeout=30)).json()["publisher"]

    async def has_opened(self) -> bool:
        """Whether the breaker is open, or has just let a probe through."""
        return (await self.publisher())["breaker"] in ("open", "half_open")

    async def has_dropped_all_but_a_batch(self) -> bool:
        """Whether of the records that the store has not got only the newest 64 wait, and perhaps a probe."""
        figures = await self.publisher()
        return figures["dropped"] >= figures["queued"] - figures["processed"] - 64 - 1

    async def has_recovered(self) -> bool:
        """Whether the breaker is closed and nothing waits."""
        figures = await self.publisher()
        return (figures["breaker"], figures["queue_depth"]) == ("closed", 0)

    async def is_recorded(self, job_id: str) -> bool:
        """Whether the store has it."""
        async with self.place.store.deployment(self.place.deployment.id) as stored:
            job = await stored.ledger.get(job_id)
        return job is not None and job.status is JobStatus.COMPLETED


@pytest.mark.parametrize("trouble", ["frozen", "gone"])
async def test_calls_go_on_while_the_store_is_away_and_the_breaker_closes_by_itself(
    valkey: Valkey, tmp_path: Path, trouble: str
) -> None:
    async with deployed(valkey.url, tmp_path) as place, running(place) as process, Caller(place) as caller:
        first = await caller.call()
        await wait_until(lambda: caller.is_recorded(first), description="a store that is well has it")

        pid = await server_pid(valkey.url)
        if trouble == "frozen":
            os.kill(pid, signal.SIGSTOP)
        else:
            valkey.kill()
        try:
            await caller.call(10)
            await wait_until(caller.has_opened, description="the breaker opens", seconds=60)
            lost = await caller.call()
            await caller.call(100)
            figures = await caller.publisher()
            assert figures["queued"] == 112
            assert figures["processed"] == 1
            assert figures["failed_total"] >= 1
            # Those that came while a probe was out are dropped once it has failed.
            await wait_until(caller.has_dropped_all_but_a_batch, description="the rest is dropped", seconds=60)
        finally:
            if trouble == "frozen":
                os.kill(pid, signal.SIGCONT)
            else:
                valkey.start()

        await wait_until(caller.has_recovered, description="the breaker closes", seconds=60)
        after = await caller.call()
        await wait_until(lambda: caller.is_recorded(after), description="the store has it again")
        assert not await caller.is_recorded(lost)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            _, stderr = await process.communicate()
    lines = [line for line in stderr.decode().splitlines() if "finished runs" in line]
    assert len([line for line in lines if "can't be recorded" in line]) <= 2, "one per interval of 15 s"
    assert len([line for line in lines if "recorded again" in line]) == 1
    assert "Traceback" not in stderr.decode()


class SlowProxy:
    """Passes everything on to the store, and each reply ``delay`` seconds late."""

    def __init__(self, upstream: str, path: Path) -> None:
        self.url = f"unix://{path}"
        self.delay = 0.0
        self._upstream = upstream.removeprefix("unix://")
        self._path = path
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> SlowProxy:
        self._server = await asyncio.start_unix_server(self._serve, str(self._path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(self._upstream)
        requests = asyncio.create_task(self._pass_on(reader, upstream_writer, late=False))
        try:
            await self._pass_on(upstream_reader, writer, late=True)
        except asyncio.CancelledError:
            pass  # the end of the test; Python 3.11 would log it as an error of its own
        finally:
            requests.cancel()
            writer.close()
            upstream_writer.close()
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, late: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if late:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()


async def test_a_slow_store_costs_calls_nothing_but_records(valkey: Valkey, short_dir: Path, tmp_path: Path) -> None:
    environment = {"PIPESERVE_EVENT_BUFFER": "1000000"}  # room for some thirty runs that wait
    async with (
        SlowProxy(valkey.url, short_dir / "proxy.sock") as proxy,
        deployed(proxy.url, tmp_path, **environment) as place,
        running(place) as process,
        Caller(place) as caller,
    ):
        first = await caller.call()
        await wait_until(lambda: caller.is_recorded(first), description="a store that is well has it")
        proxy.delay = PATIENCE + 0.5
        await caller.call(300)
        proxy.delay = 0.0
        await wait_until(caller.has_recovered, description="all that was kept is written", seconds=60)
        after = await caller.call()
        await wait_until(lambda: caller.is_recorded(after), description="the store has it")
        figures = await caller.publisher()
        assert figures["dropped"] >= 100
        assert figures["processed"] + figures["dropped"] == figures["queued"]
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            _, stderr = await process.communicate()
    assert "finished runs can't be recorded" in stderr.decode()
    assert "finished runs are recorded again" in stderr.decode()
