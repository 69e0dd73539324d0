"""A synchronous two-step pipeline through the service, against the same two functions behind a bare FastAPI route.

All are one uvicorn process with uvloop; rounds take turns, so that whatever else this machine does hits all alike. The
server's CPU time per request says most: it hardly depends on what else runs, and one process serves its inverse.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import orjson
import psutil
import uvloop

from benchmarks._load import load
from benchmarks._machine import deployed, free_port, listens, own_store, percentile, process, table, wait_for
from benchmarks._serve import cpu_seconds

ROUNDS = 3
SECONDS = 1.5
CONNECTIONS = 8
BODY = orjson.dumps({"parameters": {"text": "the quick brown fox jumps over the lazy dog " * 4}})


async def main() -> None:
    """Measure and print."""
    async with own_store() as store:
        with ExitStack() as stack:
            ports: dict[str, int] = {}
            servers: dict[str, psutil.Process] = {}

            def start(name: str, *arguments: str, port: int, **environment: str) -> None:
                servers[name] = psutil.Process(stack.enter_context(process(*arguments, **environment)).pid)
                ports[name] = port

            port = free_port()
            bare = ("-m", "uvicorn", "benchmarks._bare:app", "--port", str(port), "--no-access-log")
            start("bare FastAPI, def route", *bare, "--log-level", "warning", port=port)
            for name, pipeline in {
                "pipeserve, memory_only": "word_counts_in_memory",
                "pipeserve, everything captured": "word_counts",
            }.items():
                port = free_port()
                start(
                    name,
                    *("-m", "pipeserve_api"),
                    port=port,
                    PIPESERVE_REDIS_URL=store.url,
                    ZENML_PIPELINE_DEPLOYMENT_ID=await deployed(store, pipeline),
                    ZENML_SERVICE_PORT=str(port),
                )
            for name, port in ports.items():
                await asyncio.to_thread(wait_for, lambda port=port: listens(port), f"{name} listens")
                await load(port, BODY, seconds=0.3, connections=CONNECTIONS)  # warm up

            rates: dict[str, list[float]] = {name: [] for name in ports}
            latencies: dict[str, list[float]] = {name: [] for name in ports}
            cpu: dict[str, float] = dict.fromkeys(ports, 0.0)
            for _ in range(ROUNDS):
                for name, port in ports.items():
                    before = cpu_seconds(servers[name])
                    measured = await load(port, BODY, seconds=SECONDS, connections=CONNECTIONS)
                    cpu[name] += cpu_seconds(servers[name]) - before
                    rates[name].append(measured.requests_per_second)
                    latencies[name] += measured.latencies
    best = {name: max(found) for name, found in rates.items()}
    cost = {name: cpu[name] / len(latencies[name]) for name in rates}
    base = "bare FastAPI, def route"
    table(
        f"POST /invoke, two steps, {CONNECTIONS} connections, best of {ROUNDS} rounds of {SECONDS:g} s",
        ("", "requests/s", "ratio", "CPU µs each", "ratio", "p50 ms", "p99 ms"),
        [
            (
                name,
                f"{best[name]:.0f}",
                f"{best[name] / best[base]:.2f}",
                f"{cost[name] * 1e6:.0f}",
                f"{cost[base] / cost[name]:.2f}",
                f"{percentile(latencies[name], 50) * 1000:.2f}",
                f"{percentile(latencies[name], 99) * 1000:.2f}",
            )
            for name in rates
        ],
    )


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
