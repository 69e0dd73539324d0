"""A service as it stands in production: a store, two API processes, workers, and nginx before them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from tests.faults.installation import Part
from tests.service import free_port
from tests.streams.nginx import Proxy, nginx
from tests.worker.harness import eventually, own_valkey

from pipeserve.sdk.snapshot import snapshot
from pipeserve.sdk.target import load_target
from pipeserve.settings import StoreSettings
from pipeserve.store import open_store

TARGET = f"{Path(__file__).with_name('gates.py')}:told"


@dataclass(frozen=True)
class Told:
    """A job whose words a test lets out."""

    id: str
    gates: Path

    def open(self, *numbers: int) -> None:
        """Let it say these words."""
        for number in numbers:
            (self.gates / str(number)).touch()


@dataclass
class Site:
    """The running service."""

    proxy: Proxy
    apis: list[Part]
    urls: list[str]
    """Of the API processes themselves."""
    folder: Path
    key: str | None

    @property
    def url(self) -> str:
        """What a caller knows: nginx."""
        return self.proxy.url

    @property
    def headers(self) -> dict[str, str]:
        """What proves the key, if there is one."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def http(self, **options: Any) -> httpx.AsyncClient:
        """A client that goes through nginx."""
        return httpx.AsyncClient(base_url=self.url, headers=self.headers, timeout=30, **options)

    def gates(self) -> Path:
        """A folder for a job that is still to be submitted."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    async def submit(self, words: int = 3) -> Told:
        """A job on the workers."""
        gates = self.gates()
        async with self.http() as http:
            answer = await http.post("/invoke?mode=async", json={"parameters": {"gates": str(gates), "words": words}})
            assert answer.status_code == 202, answer.text
            return Told(answer.json()["job_id"], gates)

    async def token(self, job: Told) -> str:
        """What opens this job to a browser."""
        async with self.http() as http:
            answer = await http.post(f"/jobs/{job.id}/token")
            assert answer.status_code == 200, answer.text
            return answer.json()["token"]

    async def log_of(self, job: Told) -> list[dict[str, Any]]:
        """The job's events so far."""
        async with self.http() as http:
            answer = await http.get(f"/jobs/{job.id}/events")
            assert answer.status_code == 200, answer.text
            return answer.json()["events"]

    async def finished(self, job: Told) -> dict[str, Any]:
        """The job, once it has ended."""
        async with self.http() as http:

            async def ended() -> dict[str, Any] | None:
                found = (await http.get(f"/jobs/{job.id}")).json()
                return found if found["completed_at"] else None

            return await eventually(ended, f"job {job.id} ends")

    async def holder(self) -> Part:
        """The one API process that nginx has a connection to, once connections that are not in use have lapsed."""

        def only() -> Part | None:
            held = [api for api in self.apis for _ in range(_connections(api)) if api.running]
            return held[0] if len(held) == 1 else None

        return await eventually(only, "one API process has one connection")

    def connections(self) -> int:
        """How many callers are connected to the API processes, nginx being one."""
        return sum(_connections(api) for api in self.apis if api.running)

    @contextlib.asynccontextmanager
    async def without(self, api: Part) -> AsyncIterator[None]:
        """Kill this API process; it is back after the block."""
        api.kill()
        try:
            yield
        finally:
            api.start()
            await _ready(self.apis, self.urls)
            await self._until_used(api)

    async def _until_used(self, api: Part) -> None:
        """Return once nginx, which avoids a replica for a second after it has failed, sends it requests again."""
        address = httpx.URL(self.urls[self.apis.index(api)]).netloc.decode()
        path = "/health/live"
        seen = len(self.proxy.calls(path))
        async with self.http() as http:

            async def used() -> bool:
                await http.get(path)
                return any(call["upstream"] == address for call in self.proxy.calls(path)[seen:])

            await eventually(used, f"nginx uses {address} again")


async def _ready(apis: list[Part], urls: list[str]) -> None:
    """Return once every API process takes requests."""

    async def all_ready() -> bool:
        async with httpx.AsyncClient() as http:
            with contextlib.suppress(httpx.TransportError):
                return all([(await http.get(f"{url}/health/ready")).status_code == 200 for url in urls])
        return False

    try:
        await eventually(all_ready, "the API processes are ready")
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *(api.log[-3000:] for api in apis)])) from None


def _connections(api: Part) -> int:
    """How many callers are connected to it. (The store is on a Unix socket.)"""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(api.pid).net_connections("tcp")
        return sum(connection.status == psutil.CONN_ESTABLISHED for connection in found)
    return 0


@contextlib.asynccontextmanager
async def running_site(*, key: str | None = None) -> AsyncIterator[Site]:
    """``told`` behind nginx, until the block ends."""
    loaded = load_target(TARGET)
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="ps-site-"))
    with own_valkey() as store:
        async with open_store(StoreSettings.from_environment(redis_url=store.url)) as opened:
            deployment = await opened.registry.save(snapshot(loaded.pipeline, loaded.target))
        given = {name: value for name, value in os.environ.items() if not name.startswith(("ZENML_", "PIPESERVE_"))}
        given |= {
            "PIPESERVE_REDIS_URL": store.url,
            "PIPESERVE_DATA_DIR": str(store.folder / "data"),
            "ZENML_PIPELINE_DEPLOYMENT_ID": deployment.id,
            **({"ZENML_SERVING_AUTH_KEY": key} if key else {}),
        }
        ports = [free_port(), free_port()]
        apis = [
            Part(f"api-{port}", ("-m", "pipeserve_api"), given | {"ZENML_SERVICE_PORT": str(port)}, store.folder)
            for port in ports
        ]
        workers = Part("workers", ("-m", "pipeserve_worker", "--processes", "1"), given, store.folder)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        try:
            for part in (*apis, workers):
                part.start()
            await _ready(apis, urls)
            async with nginx(urls) as proxy:
                yield Site(proxy, apis, urls, folder, key)
        finally:
            for part in (*apis, workers):
                part.end_all()
            shutil.rmtree(folder, ignore_errors=True)
