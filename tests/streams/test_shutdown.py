"""SIGTERM with streams open: the process ends at once, each client is told, and another replica goes on exactly there.

Real API processes over one real store. The test works on the jobs itself, so it knows every event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import websockets
from tests.service import free_port
from tests.store_fixtures import wait_until

from pipeserve.events import Event, EventType, encode_body
from pipeserve.jobs import TERMINAL_EVENT_OF, JobStatus
from pipeserve.runtime.ports import Outcome, RunView
from pipeserve.sdk.snapshot import snapshot
from pipeserve.sdk.target import load_target
from pipeserve.settings import StoreSettings
from pipeserve.store import DeploymentStore, open_store

pytestmark = pytest.mark.e2e

PIPELINE = """
import asyncio
from pipeserve import pipeline, step

@step
async def nap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds

@pipeline
def naps(seconds: float = 0.0):
    return nap(seconds)
"""
JOBS = 10
END_WITHIN = 3.0
"""Seconds: a promise of the service, not a speed."""
BYE = b"retry: 1000\n\n"
_ID = re.compile(rb"^id: (\d+)$", re.MULTILINE)


@dataclass
class Work:
    """Jobs that the test runs, under claims of its own."""

    store: DeploymentStore
    job_ids: list[str]
    told: dict[str, int] = field(default_factory=dict[str, int])
    """The number of the last event of each."""

    async def tell(self, job_id: str, text: str = "x", count: int = 1) -> None:
        """Add outputs to a job's log."""
        bodies = [encode_body(Event(EventType.OUTPUT, job_id, 1, data={"value": text, "index": 0}))] * count
        self.told[job_id] = await self.store.ledger.append(job_id, 1, bodies, RunView())

    async def go_on(self, stop: asyncio.Event) -> None:
        """Tell of all jobs in turn, until ``stop``."""
        while not stop.is_set():
            for job_id in self.job_ids:
                await self.tell(job_id)
            await asyncio.sleep(0.005)

    async def end(self) -> None:
        """Complete all."""
        for job_id in self.job_ids:
            terminal = encode_body(Event(TERMINAL_EVENT_OF[JobStatus.COMPLETED], job_id, 1))
            outcome = Outcome(status=JobStatus.COMPLETED, terminal_event=terminal, execution_time=0.0, outputs=b"{}")
            await self.store.ledger.finish(job_id, 1, (), RunView(), outcome)
            self.told[job_id] += 1


@dataclass
class Place:
    """A deployment, and the environment of its services."""

    environment: dict[str, str]
    store: DeploymentStore
    folder: Path

    @asynccontextmanager
    async def service(self, **environment: str) -> AsyncIterator[Service]:
        """An API process that answers."""
        port = free_port()
        log = self.folder / f"api-{port}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pipeserve_api"),
                env=self.environment | {"ZENML_SERVICE_PORT": str(port)} | environment,
                stderr=output,
            )
        service = Service(port, process, log)
        try:
            await wait_until(service.answers, description="the service answers")
            yield service
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def work(self, service: Service) -> Work:
        """Running jobs."""
        async with httpx.AsyncClient(base_url=service.url) as http:
            for _ in range(JOBS):
                assert (await http.post("/invoke?mode=async", json={})).status_code == 202
        claims = await self.store.ledger.claim("test", JOBS)
        return Work(self.store, [claim.job_id for claim in claims], {claim.job_id: 1 for claim in claims})


@dataclass(frozen=True)
class Service:
    """A running API process."""

    port: int
    process: asyncio.subprocess.Process
    log_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answers(self) -> bool:
        assert self.process.returncode is None, self.log_file.read_text()
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient(base_url=self.url) as http:
                return (await http.get("/health/ready")).status_code == 200
        return False

    async def end(self) -> None:
        """SIGTERM; it has ended in time, cleanly, and had nothing to complain of."""
        asked_at = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            code = await self.process.wait()
        lasted = time.monotonic() - asked_at
        log = self.log_file.read_text()
        assert code == 0, log
        assert "error" not in log.lower(), log
        assert "traceback" not in log.lower(), log
        assert lasted < END_WITHIN, log


@pytest.fixture
async def place(tmp_path: Path, short_dir: Path) -> AsyncIterator[Place]:
    file = tmp_path / "naps_pipeline.py"
    file.write_text(PIPELINE)
    loaded = load_target(f"{file}:naps")
    settings = StoreSettings.from_environment(data_dir=short_dir, lease_seconds=60)
    async with open_store(settings) as store:
        deployment = await store.registry.save(snapshot(loaded.pipeline, loaded.target))
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("ZENML_", "PIPESERVE_"))
        }
        environment |= {"PIPESERVE_REDIS_URL": store.url, "ZENML_PIPELINE_DEPLOYMENT_ID": deployment.id}
        async with store.deployment(deployment.id) as opened:
            yield Place(environment, opened, tmp_path)
    sys.modules.pop("naps_pipeline", None)


class Stream:
    """One SSE client on a socket of its own, which sees every byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.text = b""
        self.complete = False
        """Whether the body had its end, not only the connection."""

    @classmethod
    async def open(cls, port: int, target: str, body: bytes | None = None, *, headers: str = "") -> Stream:
        """A request, up to the head of its answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        stream = cls(reader, writer)
        method, length = ("GET", "") if body is None else ("POST", f"Content-Length: {len(body)}\r\n")
        head = f"{method} {target} HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n{headers}{length}\r\n"
        writer.write(head.encode() + (body or b""))
        answer = await reader.readuntil(b"\r\n\r\n")
        stream.status = int(answer.split(b" ", 2)[1])
        return stream

    async def read(self, until: bytes | None = None) -> None:
        """Read chunks until the body ends, or has ``until``."""
        while until is None or until not in self.text:
            line = await self._reader.readline()
            if not line:
                break
            size = int(line, 16)
            self.text += await self._reader.readexactly(size)
            await self._reader.readexactly(2)
            if size == 0:
                self.complete = True
                break
        if until is None:
            self.close()

    def close(self) -> None:
        self._writer.close()

    @property
    def numbers(self) -> list[int]:
        """Of the events that were read."""
        return [int(number) for number in _ID.findall(self.text)]


async def followers(port: int, work: Work, count: int) -> dict[Stream, str]:
    """SSE clients who have read something, each with its job."""
    streams: dict[Stream, str] = {}
    for at in range(count):
        job_id = work.job_ids[at % len(work.job_ids)]
        streams[await Stream.open(port, f"/stream/{job_id}")] = job_id
    for stream in streams:
        assert stream.status == 200
        await stream.read(until=b"id: 1\n")
    return streams


async def test_each_stream_gets_its_farewell_and_goes_on_at_a_replica_without_loss_or_repeat(place: Place):
    async with place.service() as leaving, place.service() as staying:
        work = await place.work(leaving)
        streams = await followers(leaving.port, work, 100)
        posts = [await Stream.open(leaving.port, "/invoke?mode=async", b"{}") for _ in range(10)]
        async with httpx.AsyncClient(base_url=leaving.url, timeout=30, limits=httpx.Limits()) as http:
            assert (await http.get("/health/live")).status_code == 200  # this connection stays open, idle
            polls = [asyncio.create_task(long_poll(http, job_id, 10_000)) for job_id in work.job_ids for _ in range(3)]
            sockets = [await subscribed(leaving.port, work.job_ids[at % JOBS]) for at in range(10)]
            for post in posts:
                await post.read(until=b"id: 1\n")
            stop = asyncio.Event()
            going_on = asyncio.create_task(work.go_on(stop))
            readers = [asyncio.create_task(stream.read()) for stream in (*streams, *posts)]
            closings = [asyncio.create_task(closed(one)) for one in sockets]
            await leaving.end()
            await asyncio.gather(*readers)
            pages = await asyncio.gather(*polls)
            codes = await asyncio.gather(*closings)
        for stream in (*streams, *posts):
            assert stream.complete
            assert stream.text.endswith(BYE)
        assert pages == [{"events": [], "next": 10_000, "done": False}] * len(polls)
        assert codes == [1001] * len(sockets)

        rests = [
            await Stream.open(staying.port, f"/stream/{job_id}", headers=f"Last-Event-ID: {stream.numbers[-1]}\r\n")
            for stream, job_id in streams.items()
        ]
        stop.set()
        await going_on
        await work.end()
        await asyncio.gather(*(rest.read() for rest in rests))
        for (stream, job_id), rest in zip(streams.items(), rests, strict=True):
            assert stream.numbers + rest.numbers == list(range(1, work.told[job_id] + 1))
        await staying.end()


async def test_a_client_who_does_not_read_holds_up_nothing(place: Place):
    async with place.service() as service:
        work = await place.work(service)
        for job_id in work.job_ids:
            for _ in range(10):
                await work.tell(job_id, "x" * 50_000, count=10)
        stuck = [silent(service.port, f"/stream/{work.job_ids[at % JOBS]}") for at in range(30)]
        streams = await followers(service.port, work, 20)
        readers = [asyncio.create_task(stream.read()) for stream in streams]
        await service.end()
        await asyncio.gather(*readers)
        for one in stuck:
            one.close()
    assert all(stream.complete and stream.text.endswith(BYE) for stream in streams)
    async with place.service() as replica:
        await work.end()
        for stream, job_id in streams.items():
            at = f"Last-Event-ID: {stream.numbers[-1]}\r\n"
            rest = await Stream.open(replica.port, f"/stream/{job_id}", headers=at)
            if rest.status == 200:
                await rest.read()
            assert stream.numbers + rest.numbers == list(range(1, work.told[job_id] + 1))


async def test_a_call_that_streams_is_told_goodbye_and_its_run_has_its_time_to_end(place: Place):
    async with place.service() as leaving, place.service() as staying:
        stream = await Stream.open(leaving.port, "/invoke", b'{"parameters": {"seconds": 1}}')
        await stream.read(until=b"step_started")
        await leaving.end()
        await stream.read()
        assert stream.complete
        assert stream.text.endswith(BYE)
        [job_id] = set(re.findall(rb'"job_id":"([^"]+)"', stream.text))
        at = f"Last-Event-ID: {stream.numbers[-1]}\r\n"
        rest = await Stream.open(staying.port, f"/stream/{job_id.decode()}", headers=at)
        await rest.read()
    numbers = stream.numbers + rest.numbers
    assert numbers == list(range(1, len(numbers) + 1))
    assert b"event: pipeline_completed" in rest.text


async def test_two_processes_on_one_port_end_as_one_does(place: Place):
    async with place.service(ZENML_SERVICE_WORKERS="2") as service:
        work = await place.work(service)
        streams = await followers(service.port, work, 60)
        readers = [asyncio.create_task(stream.read()) for stream in streams]
        await service.end()
        await asyncio.gather(*readers)
    assert all(stream.complete and stream.text.endswith(BYE) for stream in streams)


async def long_poll(http: httpx.AsyncClient, job_id: str, after: int) -> dict[str, object]:
    return (await http.get(f"/jobs/{job_id}/events", params={"wait": 60, "after": after})).json()


async def subscribed(port: int, job_id: str) -> websockets.ClientConnection:
    """A WebSocket that follows a job."""
    one = await websockets.connect(f"ws://127.0.0.1:{port}/stream")
    await one.send(json.dumps({"op": "subscribe", "ref": "1", "job_id": job_id}))
    assert json.loads(await one.recv())["op"] == "ack"
    return one


async def closed(one: websockets.ClientConnection) -> int | None:
    """Read it to its end: its close code."""
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            await one.recv()
    return one.close_code


def silent(port: int, target: str) -> socket.socket:
    """A client that asks for a stream and never reads of it."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(("127.0.0.1", port))
    one.sendall(f"GET {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    return one
