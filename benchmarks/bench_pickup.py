"""From submit to start on an idle worker in another process: woken, against arq's worker as it comes (it polls)."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from arq.connections import ArqRedis, create_pool

from benchmarks._machine import deployed, own_store, percentile, process, table
from pipeserve.jobs import new_job_id
from pipeserve.runtime.ports import NewJob
from pipeserve.store import DeploymentStore
from pipeserve.store.engine import arq_settings

SAMPLES = 40


async def our_pickup(jobs: DeploymentStore, deployment_id: str) -> float:
    """Seconds from the submit to the first line of the step."""
    job_id = new_job_id()
    submitted = time.time()
    await jobs.ledger.submit(NewJob(job_id, deployment_id, "stamp", "bench", b"{}", total_steps=1))
    async with jobs.log.follow(job_id) as entries:
        async for _ in entries:
            pass
    job = await jobs.ledger.get(job_id)
    assert job is not None
    assert job.outputs is not None, job.error
    return job.outputs["output"] - submitted


async def stock_pickup(pool: ArqRedis) -> float:
    """The same with arq's own enqueue and worker."""
    submitted = time.time()
    job = await pool.enqueue_job("stamp")
    assert job is not None
    started: Any = await job.result(timeout=10, poll_delay=0.01)
    return started - submitted


async def main() -> None:
    """Measure and print."""
    async with own_store() as store:
        deployment_id = await deployed(store, "stamp")
        pool = await create_pool(arq_settings(store.url))
        worker = process(
            *("-m", "pipeserve_worker", "--processes", "1"),
            PIPESERVE_REDIS_URL=store.url,
            ZENML_PIPELINE_DEPLOYMENT_ID=deployment_id,
        )
        stock = process("-m", "arq", "benchmarks._stock_arq.WorkerSettings", BENCH_REDIS_URL=store.url)
        with worker, stock:
            async with store.deployment(deployment_id) as jobs:
                await our_pickup(jobs, deployment_id)  # both have started once these return
                await stock_pickup(pool)
                ours: list[float] = []
                stocks: list[float] = []
                for _ in range(SAMPLES):
                    ours.append(await our_pickup(jobs, deployment_id))
                    # Its last result came right after a poll: without a pause of any length up to the time between
                    # polls, every sample would wait for almost the whole of it.
                    await asyncio.sleep(random.uniform(0, 0.5))
                    stocks.append(await stock_pickup(pool))
        await pool.aclose()
    table(
        f"submit → start, idle worker in another process, {SAMPLES} samples each in turn",
        ("", "p50 ms", "p95 ms", "max ms"),
        [
            (name, *(f"{value * 1000:.1f}" for value in (percentile(found, 50), percentile(found, 95), max(found))))
            for name, found in (("arq 0.28 as it comes", stocks), ("pipeserve", ours))
        ]
        + [
            (
                "times sooner",
                *(f"{percentile(stocks, p) / percentile(ours, p):.0f}" for p in (50, 95)),
                f"{max(stocks) / max(ours):.0f}",
            )
        ],
    )


if __name__ == "__main__":
    asyncio.run(main())
