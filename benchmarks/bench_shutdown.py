"""How long SIGTERM takes with 1,000 streams open, and whether each client was told and goes on without a hole.

Most are SSE streams of ten live jobs that keep telling; some are streams of ``POST /invoke``, long polls and
WebSockets, and some clients have stopped to read. An API process ends; a second one gives each SSE client the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import uvloop
import websockets

from benchmarks._machine import deployed, free_port, listens, own_store, process, table, wait_for
from pipeserve.events import Event, EventType, encode_body
from pipeserve.jobs import TERMINAL_EVENT_OF, JobStatus
from pipeserve.runtime.ports import Outcome, RunView
from pipeserve.store import DeploymentStore

JOBS = 10
OWNER = "bench"
LARGE = 120
"""Events of 50 kB at the front of each log."""
_ID = re.compile(rb"^id: (\d+)$", re.MULTILINE)
BYE = b"retry: 1000\n\n\r\n0\r\n\r\n"
"""The farewell and the end of the chunked body."""
POST = (
    "POST /invoke?mode=async HTTP/1.1\r\nHost: b\r\nAccept: text/event-stream\r\nConnection: close\r\n"
    'Content-Length: 30\r\n\r\n{"parameters": {"seconds": 0}}'
)


class Client:
    """A raw SSE connection that keeps all it is sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, job_id: str) -> None:
        self.job_id = job_id
        self.data = b""
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, request: str, job_id: str = "", *, until: bytes = b"id: 1\n") -> Client:
        """Send a request and see the beginning of its answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        client = cls(reader, writer, job_id)
        writer.write(request.encode())
        while until not in client.data:
            data = await reader.read(65536)
            if not data:
                raise ConnectionError(client.data.decode())
            client.data += data
        return client

    async def read(self) -> None:
        """To the end of the connection."""
        while data := await self._reader.read(65536):
            self.data += data
        self._writer.close()

    @property
    def numbers(self) -> list[int]:
        """Of the events so far."""
        return [int(number) for number in _ID.findall(self.data)]

    @property
    def last(self) -> int:
        """The newest of them."""
        return self.numbers[-1]


def get(job_id: str, after: int = 0) -> str:
    """A request for a job's stream, on a connection that ends with it."""
    return f"GET /stream/{job_id}?after={after} HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"


async def tell(jobs: DeploymentStore, job_ids: list[str], text: str = "x", count: int = 1) -> None:
    """Some outputs for each job's log."""
    for job_id in job_ids:
        event = encode_body(Event(EventType.OUTPUT, job_id, 1, data={"value": text, "index": 0}))
        await jobs.ledger.append(job_id, 1, [event] * count, RunView())


async def go_on(jobs: DeploymentStore, job_ids: list[str], stop: asyncio.Event) -> None:
    """Events of all jobs until ``stop``; then their ends."""
    while not stop.is_set():
        await jobs.ledger.renew(OWNER, job_ids)
        await tell(jobs, job_ids)
        await asyncio.sleep(0.02)
    for job_id in job_ids:
        terminal = encode_body(Event(TERMINAL_EVENT_OF[JobStatus.COMPLETED], job_id, 1))
        outcome = Outcome(status=JobStatus.COMPLETED, terminal_event=terminal, execution_time=0.0, outputs=b"{}")
        await jobs.ledger.finish(job_id, 1, (), RunView(), outcome)


async def close_code(one: websockets.ClientConnection) -> int | None:
    """Read it to its end."""
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            await one.recv()
    return one.close_code


async def subscribed(port: int, job_id: str) -> websockets.ClientConnection:
    """A WebSocket that follows a job."""
    one = await websockets.connect(f"ws://127.0.0.1:{port}/stream", max_size=None)
    await one.send(json.dumps({"op": "subscribe", "ref": "1", "job_id": job_id, "after": 1 + LARGE}))
    assert json.loads(await one.recv())["op"] == "ack"
    return one


async def submit(http: httpx.AsyncClient, count: int) -> None:
    """Queue as many jobs."""
    for _ in range(count):
        (await http.post("/invoke?mode=async", json={"parameters": {"seconds": 0}})).raise_for_status()


def silent(port: int, job_id: str) -> socket.socket:
    """A client that asks and never reads."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(("127.0.0.1", port))
    one.sendall(get(job_id).encode())
    return one


@asynccontextmanager
async def replica(environment: dict[str, str], processes: int) -> AsyncIterator[tuple[int, subprocess.Popen[bytes]]]:
    """An API process (or a parent of several) that listens on the port."""
    port = free_port()
    workers = {"ZENML_SERVICE_PORT": str(port), "ZENML_SERVICE_WORKERS": str(processes)}
    with process("-m", "pipeserve_api", **environment, **workers) as running:
        await asyncio.to_thread(wait_for, lambda: listens(port), "it listens")
        yield port, running


async def measure(processes: int, streams: int) -> list[str]:
    """One line of the table."""
    posts, polls, sockets, stuck = (streams * share // 100 for share in (5, 5, 5, 2))
    async with own_store() as store, AsyncExitStack() as stack:
        deployment_id = await deployed(store, "pause")
        jobs = await stack.enter_async_context(store.deployment(deployment_id))
        environment = {
            "PIPESERVE_REDIS_URL": store.url,
            "ZENML_PIPELINE_DEPLOYMENT_ID": deployment_id,
        }
        port, leaving = await stack.enter_async_context(replica(environment, processes))
        other, _ = await stack.enter_async_context(replica(environment, 1))
        limits = httpx.Limits(max_connections=None)
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=90, limits=limits)
        )
        await submit(http, JOBS)
        job_ids = [claim.job_id for claim in await jobs.ledger.claim(OWNER, JOBS)]
        for _ in range(LARGE // 20):  # more than a connection's buffers hold
            await tell(jobs, job_ids, "x" * 50_000, 20)

        def job(at: int) -> str:
            return job_ids[at % JOBS]

        silents = [silent(port, job(at)) for at in range(stuck)]
        followers = [
            await Client.open(port, get(job(at), after=1 + LARGE), job(at), until=b"retry: ")
            for at in range(streams - posts - polls - sockets - stuck)
        ]
        posted = [await Client.open(port, POST) for _ in range(posts)]
        waits = [asyncio.create_task(http.get(f"/jobs/{job(at)}/events?wait=60&after=100000")) for at in range(polls)]
        opened = [await subscribed(port, job(at)) for at in range(sockets)]
        stop = asyncio.Event()
        telling = asyncio.create_task(go_on(jobs, job_ids, stop))
        reading = [asyncio.create_task(client.read()) for client in (*followers, *posted)]
        closing = [asyncio.create_task(close_code(one)) for one in opened]
        await asyncio.sleep(1)  # all are under way

        asked_at = time.monotonic()
        leaving.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(leaving.wait, 30)
        lasted = time.monotonic() - asked_at
        await asyncio.gather(*reading)
        answered = sum(answer.status_code == 200 for answer in await asyncio.gather(*waits))
        going_away = (await asyncio.gather(*closing)).count(1001)
        rests = [
            await Client.open(other, get(client.job_id, client.last), client.job_id, until=b"retry: ")
            for client in followers
        ]
        stop.set()
        await asyncio.gather(telling, *(rest.read() for rest in rests))
        for one in silents:
            one.close()
        told = sum(client.data.endswith(BYE) for client in (*followers, *posted))
        lost = repeated = 0
        for client, rest in zip(followers, rests, strict=True):
            numbers = client.numbers + rest.numbers
            repeated += len(numbers) - len(set(numbers))
            lost += rest.last - (1 + LARGE) - len(set(numbers))
            assert b"event: pipeline_completed" in rest.data
    return [
        f"{processes} process{'es' if processes > 1 else ''}",
        str(streams),
        f"{lasted:.2f}",
        str(code),
        f"{told} of {len(followers) + posts}",
        f"{answered} of {polls}",
        f"{going_away} of {sockets}",
        str(stuck),
        f"{lost} / {repeated}",
    ]


async def main(streams: int) -> None:
    """Measure and print."""
    table(
        "SIGTERM with open streams",
        (
            "",
            "streams",
            "seconds",
            "exit",
            "SSE told",
            "polls answered",
            "sockets 1001",
            "not reading",
            "lost/repeated",
        ),
        [await measure(processes, streams) for processes in (1, 2)],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    given = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(given.streams))
