"""A process that dies before it hears of its claim holds jobs that it never knew of; its supervisor gives them back."""

from __future__ import annotations

from tests.worker.harness import eventually, scene
from tests.worker.test_supervisor import supervised

from pipeserve.jobs import JobStatus

# Claims as a child does, under the owner token that the supervisor knows, and is gone before it has told anybody.
CLAIMS_AND_DIES = """
import asyncio, os, signal, sys
from pipeserve.settings import StoreSettings
from pipeserve.store import open_store
from pipeserve.store.connection import owner_token

async def main():
    async with open_store(StoreSettings.from_environment()) as store:
        async with store.deployment(os.environ["DEPLOYMENT"]) as jobs:
            if await jobs.ledger.claim(owner_token(os.getpid(), sys.argv[2]), 10):
                os._exit(9)
    signal.pause()

asyncio.run(main())
"""


async def test_jobs_whose_claim_was_never_heard_of_go_back_to_the_queue():
    async with scene("quick") as at:
        job_id = await at.submit(max_attempts=2)
        environment = {"PIPESERVE_REDIS_URL": at.valkey.url, "DEPLOYMENT": at.deployment.id}
        async with supervised(at.folder, CLAIMS_AND_DIES, ledger=at.jobs.ledger, environment=environment):

            async def ended() -> bool:
                return (await at.job(job_id)).status.terminal

            # No lease has run out: the supervisor alone can have given it back, twice.
            await eventually(ended, "both attempts are lost")
        job = await at.job(job_id)
        assert (job.status, job.attempt) == (JobStatus.FAILED, 2)
        assert await at.lost_reasons(job_id) == ["worker_died", "worker_died"]
