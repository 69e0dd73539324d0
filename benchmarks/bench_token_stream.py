"""Tokens from a step to a client over SSE: 50 jobs at once, each of 200 tokens a second.

Queued (two worker processes yield, the API process follows their logs through the store) and as streams of ``POST
/invoke`` (the API process yields too). Each token is the time of its yield, so its way to the client is timed without
another word; the numbers of the events show that none was lost. Clients, services and store share this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import time
from contextlib import ExitStack
from typing import cast

import httpx
import orjson
import psutil
import uvloop

from benchmarks._machine import deployed, free_port, listens, own_store, percentile, process, table, wait_for
from benchmarks.bench_frozen_store import pid_of
from pipeserve.store.connection import connect_blocking

WORKERS = 2
HEAD_START = 2.0
"""Seconds in which all streams are opened before the first token."""
_FRAME = re.compile(rb"id: (\d+)\nevent: (\w+)\ndata: ([^\n]*)\n\n")
_VALUE = re.compile(rb'"value":([\d.]+)')


class Reader(asyncio.Protocol):
    """One SSE stream, read at the least cost; it times tokens and counts holes in their numbers."""

    def __init__(self, request: bytes) -> None:
        self.latencies: list[float] = []
        self.lost = 0
        self.ended_at = 0.0
        self.first_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._buffer = b""
        self._seq = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.time()
        self._buffer += data
        read = 0
        for frame in _FRAME.finditer(self._buffer):
            read = frame.end()
            seq = int(frame[1])
            self.lost += seq - self._seq - 1
            self._seq = seq
            if frame[2] == b"output":
                value = _VALUE.search(frame[3])
                assert value is not None
                self.latencies.append(now - float(value[1]))
                self.first_at = self.first_at or now
                self.ended_at = now
            elif frame[2].startswith(b"pipeline_") and frame[2] != b"pipeline_started":
                if not self.done.done():
                    self.done.set_result(None)
                self._transport.close()
                return
        self._buffer = self._buffer[read:]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError(self._buffer.decode(errors="replace") or "closed"))


class Cpu:
    """The processor time of named groups of processes over a while."""

    def __init__(self, groups: dict[str, int]) -> None:
        """``groups``: the first process of each; its descendants count with it."""
        self._groups = {name: self._family(pid) for name, pid in groups.items()}
        self._before = self._used()

    def seconds(self) -> dict[str, float]:
        """CPU seconds of each group so far."""
        return {name: used - self._before[name] for name, used in self._used().items()}

    @staticmethod
    def _family(pid: int) -> list[psutil.Process]:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]

    def _used(self) -> dict[str, float]:
        return {name: sum(sum(one.cpu_times()[:2]) for one in family) for name, family in self._groups.items()}


def get(job_id: str) -> bytes:
    """A request for a job's stream from its first event."""
    return f"GET /stream/{job_id}?after=0 HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


def post(body: bytes) -> bytes:
    """A call that is answered with its events."""
    return (
        b"POST /invoke HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


def bodies(jobs: int, count: int, rate: float) -> list[bytes]:
    """Calls whose tokens begin in a while, out of step with one another."""
    begin = time.time() + HEAD_START
    starts = [begin + random.uniform(0, 1 / rate) for _ in range(jobs)]
    return [orjson.dumps({"parameters": {"count": count, "rate": rate, "begins_at": start}}) for start in starts]


async def queued(port: int, calls: list[bytes]) -> list[bytes]:
    """Submit the jobs; requests for their streams."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        headers = {"content-type": "application/json"}
        answers = [await http.post("/invoke?mode=async", content=call, headers=headers) for call in calls]
    return [get(answer.json()["job_id"]) for answer in answers]


async def read_all(port: int, requests: list[bytes], seconds: float) -> list[Reader]:
    """Read all streams to their ends."""
    loop = asyncio.get_running_loop()
    readers: list[Reader] = []
    for request in requests:
        _, reader = await loop.create_connection(lambda request=request: Reader(request), "127.0.0.1", port)
        readers.append(reader)
    async with asyncio.timeout(seconds):
        await asyncio.gather(*(reader.done for reader in readers))
    return readers


def scripts_run(url: str) -> int:
    """How many scripts the store has run so far."""
    client = connect_blocking(url, read_timeout=5)
    with client:
        stats = cast(dict[str, dict[str, int]], client.info("commandstats"))
    return stats.get("cmdstat_evalsha", {"calls": 0})["calls"]


def row(name: str, readers: list[Reader], wanted: float, cpu: dict[str, float], scripts: int) -> list[str]:
    """One line of the table."""
    latencies = [latency for reader in readers for latency in reader.latencies]
    span = max(reader.ended_at for reader in readers) - min(reader.first_at for reader in readers)
    return [
        name,
        f"{len(latencies) / span:,.0f} of {wanted:,.0f}",
        *(f"{percentile(latencies, percent) * 1000:.1f}" for percent in (50, 95, 99)),
        f"{max(latencies) * 1000:.0f}",
        str(sum(reader.lost for reader in readers)),
        *(f"{seconds / len(latencies) * 1e6:.0f} ({seconds / span * 100:.0f} %)" for seconds in cpu.values()),
        f"{len(latencies) / scripts:.1f}",
    ]


async def main(jobs: int, rate: float, seconds: float) -> None:
    """Measure and print."""
    count = round(rate * seconds)
    rows: list[list[str]] = []
    async with own_store() as store:
        port = free_port()
        environment = {
            "PIPESERVE_REDIS_URL": store.url,
            "ZENML_PIPELINE_DEPLOYMENT_ID": await deployed(store, "tokens", "_tokens"),
            "ZENML_SERVICE_PORT": str(port),
            "ZENML_SERVING_MAX_CONCURRENCY": str(jobs),
        }
        concurrency = str(-(-jobs // WORKERS))
        with ExitStack() as stack:
            api = stack.enter_context(process("-m", "pipeserve_api", **environment))
            worker = stack.enter_context(
                process(
                    *("-m", "pipeserve_worker", "--processes", str(WORKERS), "--concurrency", concurrency),
                    **environment,
                )
            )
            await asyncio.to_thread(wait_for, lambda: listens(port), "the service listens")
            short = bodies(WORKERS * 2, 20, rate)
            await read_all(port, [*await queued(port, short), post(short[0])], 30)  # warm up
            groups = {"API": api.pid, "workers": worker.pid, "store": pid_of(store.url)}
            for name in ("queued", "POST /invoke"):
                calls = bodies(jobs, count, rate)
                requests = await queued(port, calls) if name == "queued" else [post(call) for call in calls]
                cpu, scripts = Cpu(groups), scripts_run(store.url)
                readers = await read_all(port, requests, HEAD_START + seconds * 3 + 10)
                rows.append(row(name, readers, jobs * rate, cpu.seconds(), scripts_run(store.url) - scripts))
    table(
        f"tokens from yield to client over SSE: {jobs} jobs at once, {rate:g} tokens a second each, {seconds:g} s",
        (
            "",
            "tokens/s",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "max ms",
            "lost",
            *(f"{one} µs/token" for one in groups),
            "tokens/script",
        ),
        rows,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--rate", type=float, default=200.0, help="tokens a second of each job")
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(given.jobs, given.rate, given.seconds))
