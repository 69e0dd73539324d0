"""API processes of several pipelines side by side, measured in turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from benchmarks._load import load
from benchmarks._machine import deployed, free_port, listens, own_store, process, wait_for


@dataclass(slots=True)
class Contender:
    """One served pipeline and what was measured of it."""

    port: int
    process: psutil.Process
    rates: list[float] = field(default_factory=list[float])
    """Requests a second, by round."""
    latencies: list[float] = field(default_factory=list[float])
    """Seconds, over all rounds."""
    cpu: float = 0.0
    """Seconds of CPU time, over all rounds."""

    @property
    def best(self) -> float:
        """Requests a second in the best round: what disturbs a machine only ever slows it."""
        return max(self.rates)

    @property
    def cost(self) -> float:
        """Seconds of CPU time that a call took of its process; it hardly depends on what else runs."""
        return self.cpu / len(self.latencies)

    async def metrics(self) -> dict[str, Any]:
        """``GET /metrics``."""
        async with httpx.AsyncClient() as http:
            return (await http.get(f"http://127.0.0.1:{self.port}/metrics")).json()


@asynccontextmanager
async def contenders(
    module: str, pipelines: Mapping[str, str], environments: Mapping[str, Mapping[str, str]] | None = None
) -> AsyncIterator[dict[str, Contender]]:
    """The benchmarks' pipelines (by what to call them), each served by one API process over one store.

    ``environments``: what a process (by the same name) has set besides.
    """
    async with own_store() as store:
        with ExitStack() as stack:
            found: dict[str, Contender] = {}
            for name, pipeline in pipelines.items():
                port = free_port()
                served = stack.enter_context(
                    process(
                        *("-m", "pipeserve_api"),
                        PIPESERVE_REDIS_URL=store.url,
                        ZENML_PIPELINE_DEPLOYMENT_ID=await deployed(store, pipeline, module),
                        ZENML_SERVICE_PORT=str(port),
                        **(environments or {}).get(name, {}),
                    )
                )
                found[name] = Contender(port, psutil.Process(served.pid))
            for name, contender in found.items():
                port = contender.port
                await asyncio.to_thread(wait_for, lambda port=port: listens(port), f"{name} listens", 60)
            yield found


async def measure(
    found: dict[str, Contender],
    bodies: Sequence[bytes],
    *,
    rounds: int,
    seconds: float,
    connections: int,
    headers: bytes = b"",
) -> None:
    """Load each in turn, ``rounds`` times, after a short warm-up."""
    for contender in found.values():
        await load(contender.port, bodies[-100:], seconds=0.5, connections=connections, headers=headers)
    for _ in range(rounds):
        for contender in found.values():
            before = cpu_seconds(contender.process)
            measured = await load(contender.port, bodies, seconds=seconds, connections=connections, headers=headers)
            contender.cpu += cpu_seconds(contender.process) - before
            contender.rates.append(measured.requests_per_second)
            contender.latencies += measured.latencies


def cpu_seconds(server: psutil.Process) -> float:
    """CPU time of ``server`` so far."""
    times = server.cpu_times()
    return times.user + times.system
