"""Many readers of Server-Sent Events on one API process: memory of each, CPU time of each event, and how late it comes.

``ARGS="--subscribers 2000 --jobs 10"``; ``--one``: only one job, watched by 1,000. The readers are raw sockets in a
process of their own. Where other work runs too, CPU time is the figure to trust: what is late may have waited for a
processor.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import orjson
import psutil
import uvloop

from benchmarks._machine import ROOT, deployed, free_port, listens, own_store, process, table, wait_for
from pipeserve.events import Event, EventType, encode_body, number
from pipeserve.jobs import JobStatus, new_job_id
from pipeserve.runtime.ports import NewJob, Outcome, RunView
from pipeserve.settings import StoreSettings
from pipeserve.store import DeploymentStore, Store, open_store

EVENT_BYTES = 250
DELIVERIES = 100_000
"""Events times readers, of one case."""
LEASE = 120.0
"""Seconds for which the jobs are this process's own."""
PER_SECOND = 12_000
"""Of these: well below what one process can do, so that nothing queues."""


@dataclass(frozen=True, slots=True)
class Case:
    """``subscribers`` readers, spread evenly over ``jobs`` jobs."""

    name: str
    subscribers: int
    jobs: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What one case gave: bytes, seconds, and events that came to the readers."""

    memory: float
    cpu: float
    p50: float
    p95: float
    delivered: int
    expected: int


def event(job_id: str) -> bytes:
    """One event of 250 bytes that says when it was made."""
    value = {"value": time.monotonic_ns(), "index": 0}
    short = encode_body(Event(EventType.OUTPUT, job_id, 1, message="", data=value))
    padding = "x" * (EVENT_BYTES - len(number(100, short)))
    return encode_body(Event(EventType.OUTPUT, job_id, 1, message=padding, data=value))


@asynccontextmanager
async def api(store: Store) -> AsyncIterator[tuple[psutil.Process, int, DeploymentStore]]:
    """A served pipeline: its process, its port, and its jobs."""
    deployment_id, port = await deployed(store, "word_counts"), free_port()
    server = process(
        *("-m", "pipeserve_api"),
        PIPESERVE_REDIS_URL=store.url,
        ZENML_PIPELINE_DEPLOYMENT_ID=deployment_id,
        ZENML_SERVICE_PORT=str(port),
    )
    with server as running:
        await asyncio.to_thread(wait_for, lambda: listens(port), "the service listens")
        settings = StoreSettings.from_environment(redis_url=store.url, lease_seconds=LEASE)
        async with open_store(settings) as patient, patient.deployment(deployment_id) as jobs:
            yield psutil.Process(running.pid), port, jobs


async def measure(case: Case, store: Store) -> Figures:
    """One case, on an API process of its own."""
    async with api(store) as (server, port, jobs):
        job_ids = [new_job_id() for _ in range(case.jobs)]
        for job_id in job_ids:
            new = NewJob(job_id, jobs.keys.deployment_id, "word_counts", "bench", b"{}", total_steps=1)
            await jobs.ledger.submit(new)
        await jobs.ledger.claim("bench", case.jobs)
        first = f"http://127.0.0.1:{port}/stream/{job_ids[0]}"  # what it loads is not for the others to pay
        async with httpx.AsyncClient() as http, http.stream("GET", first) as answer:
            await anext(answer.aiter_bytes())
        await asyncio.sleep(0.5)
        before = server.memory_info().rss
        paths = [f"/stream/{job_ids[at % case.jobs]}" for at in range(case.subscribers)]
        readers = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks._subscribers", str(port), *paths, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert readers.stdout is not None
            if (told := await readers.stdout.readline()) != b"ready\n":
                raise RuntimeError(f"the readers did not come in: {told.decode()}")
            await asyncio.sleep(0.5)
            memory = (server.memory_info().rss - before) / case.subscribers
            started, events = cpu_seconds(server), await publish(case, jobs, job_ids)
            await asyncio.sleep(0.5)
            cpu = cpu_seconds(server) - started
            for job_id in job_ids:
                await end(jobs, job_id)
            found = orjson.loads(await readers.stdout.readline())
        finally:
            if readers.returncode is None:
                readers.terminate()
            await readers.wait()
    expected = sum(events[job_ids[at % case.jobs]] for at in range(case.subscribers))
    return Figures(memory, cpu, found["p50"], found["p95"], sum(found["events"]), expected)


async def publish(case: Case, jobs: DeploymentStore, job_ids: Sequence[str]) -> dict[str, int]:
    """Add events to all jobs in turn, evenly over time; how many each got."""
    readers = case.subscribers / case.jobs
    events = dict.fromkeys(job_ids, 0)
    started = time.monotonic()
    for at in range(int(DELIVERIES / readers)):
        job_id = job_ids[at % case.jobs]
        await asyncio.sleep(max(0.0, started + at * readers / PER_SECOND - time.monotonic()))
        await jobs.ledger.append(job_id, 1, [event(job_id)], RunView())
        events[job_id] += 1
    return events


async def end(jobs: DeploymentStore, job_id: str) -> None:
    """Complete the job, which ends its readers."""
    terminal = encode_body(Event(EventType.PIPELINE_COMPLETED, job_id, 1, data={"outputs": None}))
    outcome = Outcome(JobStatus.COMPLETED, terminal, execution_time=0.0, outputs=b"{}")
    await jobs.ledger.finish(job_id, 1, [], RunView(), outcome)


def cpu_seconds(server: psutil.Process) -> float:
    """CPU time of the server so far."""
    times = server.cpu_times()
    return times.user + times.system


def row(case: Case, figures: Figures) -> tuple[str, ...]:
    """A line of the table."""
    return (
        case.name,
        f"{figures.memory / 1024:.1f}",
        f"{figures.cpu / figures.delivered * 1e6:.1f}",
        f"{figures.p50 * 1000:.1f}",
        f"{figures.p95 * 1000:.1f}",
        str(figures.delivered),
        str(figures.expected - figures.delivered),
    )


async def main(cases: Sequence[Case]) -> None:
    """Measure and print."""
    async with own_store() as store:
        rows = [row(case, await measure(case, store)) for case in cases]
    header = ("", "KiB each", "CPU µs per delivered event", "p50 ms", "p95 ms", "delivered", "missing")
    table(f"Server-Sent Events of {EVENT_BYTES} bytes, one API process, publish → client", header, rows)


def arguments() -> list[Case]:
    """The cases that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subscribers", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--one", action="store_true", help="only the case of one job, watched by 1,000")
    asked = parser.parse_args()
    one = Case("1,000 readers of one job", 1000, 1)
    many = Case(f"{asked.subscribers:,} readers of {asked.jobs:,} jobs", asked.subscribers, asked.jobs)
    return [one] if asked.one else [many, one]


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a socket for each reader, here and there
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(arguments()))
