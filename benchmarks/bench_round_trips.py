"""How often the store is asked per job, with 1, 4 and 8 worker processes: flat, or else they hinder one another.

Round trips are counted by the server: the packets with commands that it has read (``total_reads_processed``), less
what idle workers send in the same time. The jobs are in the queue before they are due; each takes 20 ms.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks._machine import deployed, own_store, process, table
from pipeserve.jobs import JobStatus, new_job_id
from pipeserve.runtime.ports import NewJob
from pipeserve.store import DeploymentStore

JOBS = 600
WORKERS = (1, 4, 8)
_IDLE_SECONDS = 3.0
_AHEAD_SECONDS = 2.0
"""All jobs are submitted before the first is due."""


async def reads(jobs: DeploymentStore) -> tuple[int, int]:
    """Packets read and commands run by the server so far."""
    info = await jobs.redis.info("stats")
    return int(info["total_reads_processed"]), int(info["total_commands_processed"])


async def measured(jobs: DeploymentStore, deployment_id: str) -> tuple[float, float, float]:
    """Round trips and commands for each job, and jobs a second."""
    before = await reads(jobs)
    await asyncio.sleep(_IDLE_SECONDS)
    after = await reads(jobs)
    idle = [(late - early) / _IDLE_SECONDS for early, late in zip(before, after, strict=True)]
    due = time.time() + _AHEAD_SECONDS
    batch = [
        NewJob(new_job_id(), deployment_id, "pause", "bench", b'{"seconds": 0.02}', total_steps=1, run_at=due)
        for _ in range(JOBS)
    ]
    await jobs.ledger.submit_many(batch)
    before, started = await reads(jobs), time.monotonic()
    ahead = due - time.time()
    while (await jobs.redis.zcard(jobs.keys.status(JobStatus.COMPLETED))) < JOBS:  # noqa: ASYNC110 - the server counts, and nobody tells
        await asyncio.sleep(0.05)
    seconds, after = time.monotonic() - started, await reads(jobs)
    asked = seconds / 0.05  # our own looks
    trips, commands = (
        (late - early - rate * seconds - asked) / JOBS for early, late, rate in zip(before, after, idle, strict=True)
    )
    return trips, commands, JOBS / (seconds - ahead)


async def main() -> None:
    """Measure and print."""
    rows: list[tuple[str, ...]] = []
    for workers in WORKERS:
        async with own_store() as store:
            deployment_id = await deployed(store, "pause")
            environment = {"PIPESERVE_REDIS_URL": store.url, "ZENML_PIPELINE_DEPLOYMENT_ID": deployment_id}
            arguments = ("-m", "pipeserve_worker", "--processes", str(workers))
            async with store.deployment(deployment_id) as jobs:
                with process(*arguments, **environment):
                    while len((await jobs.operations.figures()).workers) < workers:  # noqa: ASYNC110 - likewise
                        await asyncio.sleep(0.1)
                    trips, commands, rate = await measured(jobs, deployment_id)
        rows.append((str(workers), f"{trips:.2f}", f"{commands:.1f}", f"{rate:,.0f}"))
    table(
        f"{JOBS} jobs of 20 ms, 10 at once in each process",
        ("worker processes", "round trips/job", "commands/job (in scripts too)", "jobs/s"),
        rows,
    )


if __name__ == "__main__":
    asyncio.run(main())
