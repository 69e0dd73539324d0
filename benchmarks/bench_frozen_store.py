"""What a frozen store costs synchronous calls: nothing, it is hoped.

One service under full load, its store stopped with SIGSTOP and let go on again, round after round; so whatever else
this machine does hits all phases alike. The service's breaker has its default threshold and number of events; it
probes every two seconds, so that the probes, which hang, are measured too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from contextlib import suppress

import orjson
import psutil
import uvloop

from benchmarks._load import load
from benchmarks._machine import deployed, free_port, listens, own_store, percentile, process, table, wait_for
from pipeserve.store.connection import connect_blocking

ROUNDS = 3
SECONDS = 4.0
CONNECTIONS = 4
BODY = orjson.dumps({"parameters": {"text": "the quick brown fox jumps over the lazy dog " * 4}})
WELL, FIRST, OPEN, AGAIN = "store well", "frozen, first 4 s", "frozen, breaker open", "well again"


def pid_of(url: str) -> int:
    """The store's process."""
    client = connect_blocking(url, read_timeout=5)
    with client:
        return client.info("server")["process_id"]  # pyright: ignore[reportIndexIssue] - redis-py says "or awaitable"


def publisher(port: int) -> dict[str, object]:
    """The service's publisher, as ``/metrics`` shows it; it waits for the store first, if that is frozen."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return orjson.loads(answer.read())["publisher"]


async def loaded_until(port: int, breaker: tuple[str, ...]) -> None:
    """Go on calling until the breaker is in one of these states."""
    while True:
        asking = asyncio.create_task(asyncio.to_thread(publisher, port))
        while not asking.done():
            await load(port, BODY, seconds=0.5, connections=CONNECTIONS)
        if (await asking)["breaker"] in breaker:
            return


async def main() -> None:
    """Measure and print."""
    latencies: dict[str, list[float]] = {WELL: [], FIRST: [], OPEN: [], AGAIN: []}
    async with own_store() as store:
        server, port = pid_of(store.url), free_port()

        async def measure(phase: str) -> None:
            measured = await load(port, BODY, seconds=SECONDS, connections=CONNECTIONS)
            latencies[phase] += measured.latencies

        environment = {
            "PIPESERVE_REDIS_URL": store.url,
            "ZENML_PIPELINE_DEPLOYMENT_ID": await deployed(store, "word_counts"),
            "ZENML_SERVICE_PORT": str(port),
            "ZENML_RT_CB_OPEN_SECONDS": "2",
        }
        with process("-m", "pipeserve_api", **environment) as service:
            await asyncio.to_thread(wait_for, lambda: listens(port), "the service listens")
            await load(port, BODY, seconds=2.0, connections=CONNECTIONS)  # warm up
            memory = psutil.Process(service.pid)
            before = memory.memory_info().rss
            try:
                for _ in range(ROUNDS):
                    await measure(WELL)
                    os.kill(server, signal.SIGSTOP)
                    await measure(FIRST)
                    await loaded_until(port, ("open", "half_open"))
                    await measure(OPEN)
                    os.kill(server, signal.SIGCONT)
                    await loaded_until(port, ("closed",))
                    await measure(AGAIN)
            finally:
                with suppress(ProcessLookupError):
                    os.kill(server, signal.SIGCONT)
            figures = await asyncio.to_thread(publisher, port)
            grown = memory.memory_info().rss - before
    p50 = {phase: percentile(found, 50) * 1000 for phase, found in latencies.items()}
    p99 = {phase: percentile(found, 99) * 1000 for phase, found in latencies.items()}
    table(
        f"POST /invoke, two steps, {CONNECTIONS} connections, {ROUNDS} rounds of {SECONDS:g} s per phase",
        ("", "calls", "p50 ms", "ratio", "p99 ms", "ratio"),
        [
            (
                phase,
                str(len(latencies[phase])),
                f"{p50[phase]:.2f}",
                f"{p50[phase] / p50[WELL]:.2f}",
                f"{p99[phase]:.2f}",
                f"{p99[phase] / p99[WELL]:.2f}",
            )
            for phase in latencies
        ],
    )
    print(f"  memory of the service: {grown / 1_048_576:+.1f} MiB over all rounds; its publisher in the end: {figures}")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
