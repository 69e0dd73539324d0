"""The clock of the server's host jumps: leases mean what they meant, and nothing waits for an hour."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contracts.stores import NO_VIEW, new_job, outcome
from tests.programs import missing
from tests.store.servers import Server
from tests.store_fixtures import wait_until

from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import Webhook
from pipeserve.settings import StoreSettings
from pipeserve.store import DeploymentStore, LeaseKeeper, open_store

pytestmark = pytest.mark.e2e

LEASE = 2.0
HOUR = 3600.0


class Clock:
    """The server's clock, which a test can set."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set("+0")

    def set(self, offset: str) -> None:
        """From the true time: ``+1h``, ``-1h``."""
        new = self._file.with_suffix(".new")
        new.write_text(offset + "\n")
        new.replace(self._file)


@pytest.fixture
def clock(short_dir: Path) -> Clock:
    """Needs the Debian package faketime, or the like."""
    found = [
        *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
        *Path("/usr/lib").glob("faketime/libfaketimeMT.so.1"),
    ]
    if not found or not sys.platform.startswith("linux"):
        missing("libfaketime is not installed (apt-get install faketime)")
    return Clock(found[0], short_dir / "clock")


@contextlib.asynccontextmanager
async def opened(directory: Path, clock: Clock) -> AsyncIterator[tuple[str, DeploymentStore]]:
    options = ("--appendonly", "yes", "--save", "")
    async with Server(directory, *options, environment=clock.environment) as server:
        settings = StoreSettings.from_environment(redis_url=server.url, lease_seconds=LEASE)
        async with open_store(settings) as store, store.deployment("d") as jobs:
            yield server.url, jobs


async def jump(clock: Clock, offset: str, jobs: DeploymentStore) -> None:
    """Set the clock, and wait until the server has noticed."""

    async def now() -> float:
        seconds, _ = await jobs.redis.time()
        return float(seconds)

    async def jumped() -> bool:
        return abs(await now() - before) > HOUR - 10

    before = await now()
    clock.set(offset)
    await wait_until(jumped, description="the clock has jumped")


async def taken(jobs: DeploymentStore, job_id: str, by: str) -> bool:
    """Claims what there is, until it has this job."""
    claims = await jobs.ledger.claim(by, 10)
    assert {claim.job_id for claim in claims} <= {job_id}, "only that one was to be had"
    return bool(claims)


@pytest.mark.parametrize("offset", ["+1h", "-1h", "+30h"])
async def test_a_dead_owner_loses_its_job_within_about_a_lease_and_a_living_one_does_not(
    short_dir: Path, clock: Clock, offset: str
) -> None:
    async with opened(short_dir, clock) as (url, jobs):
        kept, dead = new_job(), new_job()
        await jobs.ledger.submit(kept)
        await jobs.ledger.claim("alive", 1)
        await jobs.ledger.submit(dead)
        await jobs.ledger.claim("dead", 1)
        lost: list[str] = []
        with LeaseKeeper(url, jobs.keys, "alive", LEASE, on_lost=lost.append) as keeper:
            keeper.add(kept.job_id)
            await jump(clock, offset, jobs)
            assert await jobs.ledger.claim("other", 10) == [], "nobody had time yet to renew"
            # Far less than an hour, however slow the machine.
            await wait_until(lambda: taken(jobs, dead.job_id, "other"), description="it is retaken", seconds=20)
            assert lost == []
            shown = await jobs.ledger.get(kept.job_id)
            assert shown is not None
            assert (shown.status, shown.attempt) == (JobStatus.RUNNING, 1)
            assert await jobs.ledger.finish(kept.job_id, 1, [], NO_VIEW, outcome(kept.job_id))
            keeper.discard(kept.job_id)
        await jobs.ledger.release("other", lost=False)


async def test_after_the_clock_was_set_back_waiting_jobs_and_webhooks_go_on(short_dir: Path, clock: Clock) -> None:
    async with opened(short_dir, clock) as (_, jobs):
        webhook = Webhook("https://example.org/", ("pipeline_completed",))
        ended, waiting, given_back = new_job(webhook=webhook), new_job(), new_job()
        for job in (ended, given_back, waiting):
            await jobs.ledger.submit(job)
        await jobs.ledger.claim("owner", 2)
        await jobs.ledger.finish(ended.job_id, 1, [], NO_VIEW, outcome(ended.job_id))
        await jump(clock, "-1h", jobs)
        assert await jobs.ledger.release("owner", lost=False) == 1
        assert {claim.job_id for claim in await jobs.ledger.claim("owner", 5)} == {waiting.job_id, given_back.job_id}

        async def due() -> list[str]:
            found, _ = await jobs.webhooks.due(5, hold=60.0)
            return [webhook.job_id for webhook in found]

        assert await wait_until(due, description="the webhook is due") == [ended.job_id]
        await jobs.ledger.release("owner", lost=False)


async def test_moments_that_a_caller_has_named_follow_the_clock(short_dir: Path, clock: Clock) -> None:
    async with opened(short_dir, clock) as (_, jobs):
        later = new_job(run_at=time.time() + HOUR / 2)
        impatient = new_job(run_at=time.time() + 2 * HOUR, expires_in=HOUR / 2)
        for job in (later, impatient):
            await jobs.ledger.submit(job)
        await jump(clock, "-1h", jobs)
        assert await jobs.ledger.claim("owner", 5) == []
        await jump(clock, "+1h", jobs)
        assert [claim.job_id for claim in await jobs.ledger.claim("owner", 5)] == [later.job_id]
        shown = await jobs.ledger.get(impatient.job_id)
        assert shown is not None
        assert shown.status is JobStatus.EXPIRED
        await jobs.ledger.release("owner", lost=False)
