"""``python -m pipeserve_api`` as a real process on a real store."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.api.harness import wait_until

from pipeserve.jobs import JobStatus
from pipeserve.sdk.deployment import Deployment
from pipeserve.sdk.snapshot import snapshot
from pipeserve.sdk.target import load_target
from pipeserve.settings import StoreSettings
from pipeserve.store import Store, open_store

pytestmark = pytest.mark.e2e

PIPELINE = """
import asyncio
import time
from pipeserve import pipeline, step

@step
async def nap(seconds: float, thread: bool) -> float:
    await asyncio.sleep(0 if thread else seconds)
    return seconds

@step
def doze(seconds: float, thread: bool) -> float:
    time.sleep(seconds if thread else 0)
    return seconds

@pipeline
def naps(seconds: float = 0.0, thread: bool = False):
    return doze(nap(seconds, thread), thread)
"""


@dataclass
class Place:
    """A deployment in a store of its own, and the environment of a service for it."""

    deployment: Deployment
    file: Path
    environment: dict[str, str]
    store: Store

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['ZENML_SERVICE_PORT']}"


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    file = tmp_path / "naps_pipeline.py"
    file.write_text(PIPELINE)
    loaded = load_target(f"{file}:naps")
    settings = StoreSettings.from_environment(data_dir=tmp_path / "data")
    async with open_store(settings) as store:
        deployment = await store.registry.save(snapshot(loaded.pipeline, loaded.target))
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("ZENML_", "PIPESERVE_"))
        }
        environment |= {
            "PYTHONFAULTHANDLER": "1",
            "PIPESERVE_DATA_DIR": str(settings.data_dir),
            "ZENML_PIPELINE_DEPLOYMENT_ID": deployment.id,
            "ZENML_SERVICE_PORT": str(free_port()),
        }
        yield Place(deployment, file, environment, store)
    sys.modules.pop("naps_pipeline", None)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def start(environment: dict[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pipeserve_api", env=environment, stderr=asyncio.subprocess.PIPE
    )


@asynccontextmanager
async def running(place: Place) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process, from when it answers; ended at the end of the block if it still runs."""
    process = await start(place.environment)
    try:
        async with httpx.AsyncClient(base_url=place.url) as http:

            async def answers() -> bool:
                assert process.returncode is None, (await process.communicate())[1].decode()
                try:
                    return (await http.get("/health/live")).status_code == 200
                except httpx.TransportError:
                    return False

            await wait_until(answers, "the service answers", seconds=15)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def refused(environment: dict[str, str]) -> tuple[int | None, str]:
    """The exit code and stderr of a process that can't start."""
    process = await start(environment)
    reading = asyncio.create_task(process.communicate())
    try:
        _, stderr = await asyncio.wait_for(asyncio.shield(reading), 15)
    except TimeoutError:
        process.send_signal(signal.SIGABRT)  # faulthandler then tells where it hangs
        raise AssertionError(f"it does not end: {(await reading)[1].decode()}") from None
    return process.returncode, stderr.decode()


async def test_without_a_deployment_id_it_says_how_to_make_one(place: Place):
    del place.environment["ZENML_PIPELINE_DEPLOYMENT_ID"]
    code, stderr = await refused(place.environment)
    assert code == 2
    assert "ZENML_PIPELINE_DEPLOYMENT_ID" in stderr
    assert "pipeserve deploy" in stderr
    assert "Traceback" not in stderr


async def test_an_unknown_deployment_is_refused(place: Place):
    code, stderr = await refused(place.environment | {"ZENML_PIPELINE_DEPLOYMENT_ID": "nothing"})
    assert code == 2
    assert "'nothing'" in stderr
    assert "pipeserve deploy" in stderr
    assert "Traceback" not in stderr


async def test_changed_code_is_refused_with_both_fingerprints(place: Place):
    place.file.write_text(PIPELINE.replace("return seconds", "return seconds + 1"))
    code, stderr = await refused(place.environment)
    assert code == 2
    assert place.deployment.fingerprint[:12] in stderr
    assert f"pipeserve deploy {place.deployment.target}" in stderr
    assert "Traceback" not in stderr


async def test_a_wrong_setting_is_refused_by_name(place: Place):
    code, stderr = await refused(place.environment | {"PIPESERVE_MAX_BODY": "big"})
    assert code == 2
    assert "PIPESERVE_MAX_BODY" in stderr


async def test_a_taken_port_is_refused(place: Place):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        code, stderr = await refused(place.environment | {"ZENML_SERVICE_PORT": port})
    assert code == 2
    assert "ZENML_SERVICE_PORT" in stderr
    assert "Traceback" not in stderr


async def test_it_serves_by_the_deployments_name_and_ends_cleanly(place: Place):
    place.environment["ZENML_PIPELINE_DEPLOYMENT_ID"] = "naps"
    async with running(place) as process, httpx.AsyncClient(base_url=place.url) as http:
        answer = await http.post("/invoke", json={"parameters": {"seconds": 0}})
        assert answer.json()["outputs"] == {"output": 0.0}
        assert (await http.get("/health/ready")).status_code == 200
        assert (await http.get("/info")).json()["deployment"]["id"] == place.deployment.id
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            _, stderr = await process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in stderr.decode()


async def test_two_hundred_open_streams_do_not_hold_up_its_end(place: Place):
    limits = httpx.Limits(max_connections=None)
    async with running(place) as process, httpx.AsyncClient(base_url=place.url, limits=limits, timeout=20) as http:
        job_id = (await http.post("/invoke?mode=async", json={})).json()["job_id"]
        opened = asyncio.Semaphore(0)

        async def follow() -> str:
            async with http.stream("GET", f"/stream/{job_id}") as answer:
                chunks = answer.aiter_text()
                text = await anext(chunks)
                opened.release()
                return text + "".join([chunk async for chunk in chunks])

        streams = [asyncio.create_task(follow()) for _ in range(200)]
        for _ in streams:
            await opened.acquire()
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            texts = await asyncio.gather(*streams)
            _, stderr = await process.communicate()
        assert time.monotonic() - started < 3  # a promise of the service, not a speed
    assert process.returncode == 0
    assert all(text.endswith("retry: 1000\n\n") for text in texts)
    assert "ERROR" not in stderr.decode().upper()


async def test_a_running_call_is_answered_before_the_process_ends(place: Place):
    async with running(place) as process, httpx.AsyncClient(base_url=place.url, timeout=10) as http:
        call = asyncio.create_task(http.post("/invoke", json={"parameters": {"seconds": 0.6}}))

        async def active() -> bool:
            return (await http.get("/metrics")).json()["active_runs"] == 1

        await wait_until(active, "the call runs")
        process.send_signal(signal.SIGTERM)
        answer = await call
        async with asyncio.timeout(5):
            await process.communicate()
    assert answer.json()["outputs"] == {"output": 0.6}
    assert process.returncode == 0


async def test_kept_connections_end_when_the_drain_begins(place: Place):
    """A proxy would send its next call on them, to be refused, for as long as the last call runs."""
    async with running(place) as process, httpx.AsyncClient(base_url=place.url, timeout=10) as http:
        url = httpx.URL(place.url)
        idle, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in await idle.readuntil(b"}")
        call = asyncio.create_task(http.post("/invoke", json={"parameters": {"seconds": 1}}))

        async def active() -> bool:
            return (await http.get("/metrics")).json()["active_runs"] == 1

        await wait_until(active, "the call runs")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await idle.read() == b""
        assert not call.done()
        writer.close()
        answer = await call
        await process.communicate()
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")


@pytest.mark.parametrize("thread", [False, True])
async def test_a_call_that_outlasts_the_grace_is_told_and_recorded_as_draining(place: Place, thread: bool):
    place.environment["PIPESERVE_DRAIN_SECONDS"] = "0.3"
    body = {"parameters": {"seconds": 8, "thread": thread}}
    async with running(place) as process, httpx.AsyncClient(base_url=place.url, timeout=10) as http:
        kept = (await http.post("/invoke", json=body, headers={"Prefer": "wait=0.1"})).json()["job_id"]
        call = asyncio.create_task(http.post("/invoke", json=body))

        async def active() -> bool:
            return (await http.get("/metrics")).json()["active_runs"] == 2

        await wait_until(active, "the calls run")
        process.send_signal(signal.SIGTERM)
        answer = await call
        async with asyncio.timeout(5):
            _, stderr = await process.communicate()
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (503, "draining", True)
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    assert process.returncode == 0, stderr.decode()
    async with place.store.deployment(place.deployment.id) as stored:
        for job_id in (kept, answer.json()["job_id"]):
            job = await stored.ledger.get(job_id)
            assert job is not None
            assert job.error is not None
            assert (job.status, job.error.code) == (JobStatus.FAILED, "draining")


async def test_several_processes_share_the_port_and_a_dead_one_is_replaced(place: Place):
    place.environment["ZENML_SERVICE_WORKERS"] = "2"
    async with running(place) as process:

        def children() -> list[int]:
            listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            return [int(pid) for pid in listed if alive(int(pid))]

        await wait_until(lambda: len(children()) == 2, "both children run")
        victim = children()[0]
        os.kill(victim, signal.SIGKILL)
        await wait_until(lambda: victim not in children(), "it is dead")
        await wait_until(lambda: len(children()) == 2, "another child runs", seconds=10)

        async def answers() -> bool:
            async with httpx.AsyncClient(base_url=place.url, timeout=5) as http:
                return (await http.post("/invoke", json={})).status_code == 200

        await wait_until(answers, "the service answers", seconds=10)
        before = children()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(8):
            await process.communicate()
        assert process.returncode == 0
        assert not [child for child in before if alive(child)]


async def test_it_ends_with_the_process_that_started_it(place: Place, tmp_path: Path):
    script = (
        "import os, subprocess, sys, time\n"
        "env = dict(os.environ, PIPESERVE_PARENT_PID=str(os.getpid()))\n"
        "child = subprocess.Popen([sys.executable, '-m', 'pipeserve_api'], env=env)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, env=place.environment, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())

    async def answers() -> bool:
        try:
            async with httpx.AsyncClient(base_url=place.url) as http:
                return (await http.get("/health/live")).status_code == 200
        except httpx.TransportError:
            return False

    await wait_until(answers, "the service answers", seconds=15)
    parent.kill()
    await parent.wait()
    await wait_until(lambda: not alive(child), "the service is gone")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
