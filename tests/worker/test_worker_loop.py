"""The loop: woken, never polling, and nothing that a job or the store does ends it.

Where a test sets the fallback poll to an hour, only a wake-up can have started the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.worker.harness import Scene, eventually, scene

from pipeserve.errors import StoreUnavailableError
from pipeserve.jobs import JobStatus
from pipeserve.process_log import get_log
from pipeserve.runtime.ports import Claim
from pipeserve.store import WakeUps
from pipeserve_worker.worker import Allowance, JobWorker

AN_HOUR = 3600.0


class Told:
    """An execution that runs nothing: a job goes on until the test says so."""

    def __init__(self) -> None:
        self.claims: list[Claim] = []
        self.accepted: list[str] = []
        self.dismissed: list[str] = []
        self.refused: list[str] = []
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    @property
    def started(self) -> list[str]:
        return [claim.job_id for claim in self.claims]

    def accept(self, claim: Claim) -> None:
        self.accepted.append(claim.job_id)

    async def run(self, claim: Claim) -> None:
        self.claims.append(claim)
        if self.error is not None:
            raise self.error
        await self.go_on.wait()

    async def refuse(self, claim: Claim, reason: str) -> None:
        self.refused.append(reason)

    def dismiss(self, claim: Claim) -> None:
        self.dismissed.append(claim.job_id)


@contextlib.asynccontextmanager
async def running(
    at: Scene,
    execution: Told,
    *,
    owner: str = "me",
    concurrency: int = 2,
    source: Any = None,
    poll: float = AN_HOUR,
    wake_ups: Any = None,
    allowance: Allowance | None = None,
) -> AsyncIterator[JobWorker]:
    async with WakeUps(at.valkey.url, at.jobs.keys) as own_wake_ups:
        worker = JobWorker(
            pool=at.jobs.redis,
            keys=at.jobs.keys,
            wake_ups=wake_ups or own_wake_ups,
            source=source or at.jobs.ledger,
            execution=execution,
            owner=owner,
            concurrency=concurrency,
            log=get_log("pipeserve_worker", worker=owner),
            allowance=allowance,
            fallback_poll=poll,
        )
        main = asyncio.create_task(worker.async_run())
        try:
            yield worker
        finally:
            worker.stop()
            execution.go_on.set()
            await main
            await worker.wait_idle()


async def listening(at: Scene, workers: int = 1) -> None:
    """Return once so many workers block on the wake list."""

    def blocked() -> bool:
        with at.valkey.client() as client:
            return sum(entry["cmd"] == "blpop" for entry in client.client_list()) == workers

    await eventually(blocked, "workers wait for a token")


class Counted:
    """The ledger, and how often workers looked into it."""

    def __init__(self, at: Scene) -> None:
        self._ledger = at.jobs.ledger
        self.looks = 0

    async def claim_batch(self, owner: str, limit: int) -> tuple[list[Claim], float | None]:
        self.looks += 1
        return await self._ledger.claim_batch(owner, limit)


async def test_an_idle_worker_is_woken_by_a_submit():
    async with scene("quick") as at:
        told = Told()
        async with running(at, told):
            await listening(at)
            job_id = await at.submit()
            await eventually(lambda: told.started == [job_id], "the job starts")


async def test_one_job_wakes_one_of_several_idle_workers():
    async with scene("quick") as at:
        first, second, source = Told(), Told(), Counted(at)
        async with (
            running(at, first, owner="a", concurrency=4, source=source),
            running(at, second, owner="b", concurrency=4, source=source),
        ):
            await listening(at, workers=2)
            at_rest = source.looks
            for count in range(1, 5):
                job_id = await at.submit()
                await eventually(lambda job_id=job_id: job_id in first.started + second.started, "the job starts")
                await listening(at, workers=2)
                assert source.looks == at_rest + count
            assert first.started, "they take turns: the one that has waited longest is woken"
            assert second.started


async def test_a_free_slot_takes_the_next_job_at_once():
    async with scene("quick") as at:
        told = Told()
        async with running(at, told, concurrency=1) as worker:
            jobs = [await at.submit() for _ in range(3)]
            await eventually(lambda: told.started == jobs[:1], "the first job starts")
            assert worker.busy == 1
            told.go_on.set()
            await eventually(lambda: told.started == jobs, "the others follow")


async def test_a_job_that_is_given_back_wakes_another_worker():
    async with scene("quick") as at:
        lost, saved = Told(), Told()
        async with running(at, lost, owner="lost", concurrency=1):
            job_id = await at.submit()
            await eventually(lambda: lost.started, "the job starts")
            async with running(at, saved, owner="saved"):
                await listening(at)
                await at.jobs.ledger.release("lost", lost=True)
                await eventually(lambda: saved.started == [job_id], "the job starts elsewhere")
                assert saved.claims[0].attempt == 2


async def test_a_full_worker_leaves_tokens_to_idle_ones():
    async with scene("quick") as at:
        full, idle = Told(), Told()
        async with running(at, full, owner="full", concurrency=1):
            await listening(at)
            first = await at.submit()
            await eventually(lambda: full.started == [first], "the first job starts")
            async with running(at, idle, owner="idle"):
                second = await at.submit()
                await eventually(lambda: idle.started == [second], "the idle worker takes the second")


class Hesitant:
    """Wake-ups whose tokens arrive, but never reach the worker: it stops before that."""

    def __init__(self, wake_ups: WakeUps) -> None:
        self._wake_ups = wake_ups
        self.token_arrived = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        while not await self._wake_ups.wait(seconds):
            pass
        self.token_arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def give_back(self) -> None:
        await self._wake_ups.give_back()


async def test_a_token_in_the_hands_of_a_worker_that_stops_wakes_another():
    async with scene("quick") as at:
        stopping, idle = Told(), Told()
        async with WakeUps(at.valkey.url, at.jobs.keys) as real:
            hesitant = Hesitant(real)
            async with running(at, stopping, owner="stopping", wake_ups=hesitant) as worker:
                await listening(at)
                async with running(at, idle, owner="idle"):
                    await listening(at, workers=2)
                    job_id = await at.submit()
                    await hesitant.token_arrived.wait()
                    assert idle.started == []
                    worker.stop()
                    await eventually(lambda: idle.started == [job_id], "the other worker takes it")


class Few:
    """An allowance of a few jobs."""

    def __init__(self, jobs: int) -> None:
        self._left = jobs

    def allows(self, wanted: int) -> int:
        return min(wanted, self._left)

    def took(self, count: int) -> None:
        self._left -= count


async def test_a_worker_whose_allowance_is_used_up_stops_with_its_jobs_in_hand():
    async with scene("quick") as at:
        told, other = Told(), Told()
        async with running(at, told, owner="few", concurrency=5, allowance=Few(2)) as worker:
            jobs = [await at.submit() for _ in range(4)]
            await eventually(lambda: worker.main_task is not None and worker.main_task.done(), "the loop returns")
            assert told.accepted == jobs[:2]
            assert worker.busy == 2
            async with running(at, other, owner="other", concurrency=5):
                await eventually(lambda: sorted(other.started) == sorted(jobs[2:]), "the rest waits for another")


class Later:
    """A source whose only job is due a little later."""

    def __init__(self, claim: Claim, due_ms: float) -> None:
        self._claim = claim
        self._due_ms = due_ms
        self.calls = 0

    async def claim_batch(self, owner: str, limit: int) -> tuple[list[Claim], float | None]:
        self.calls += 1
        if time.time() * 1000 < self._due_ms:
            return [], self._due_ms
        self._due_ms, due = float("inf"), self._due_ms
        return ([self._claim], None) if due != float("inf") else ([], None)


def a_claim(job_id: str = "later") -> Claim:
    now = time.time()
    return Claim(job_id, 1, "d", "run", b"{}", None, created_at=now, due_at=now, claimed_at=now)


async def test_the_loop_wakes_when_the_next_job_is_due():
    async with scene("quick") as at:
        with at.valkey.client() as client:
            client.set("arq:job:later", b'{"t":null,"f":"pipeserve_run","a":[],"k":{},"et":1}', ex=60)
        source = Later(a_claim(), time.time() * 1000 + 150)
        told = Told()
        # The poll of an hour is cut to the due time.
        async with running(at, told, source=source):
            await eventually(lambda: told.started == ["later"], "the job starts when it is due")
        assert source.calls < 20, "it slept until then"


class Broken:
    """A source that fails as a store that is away does, then gives one job."""

    def __init__(self, errors: list[Exception], claim: Claim) -> None:
        self._errors = errors
        self._claims = [claim]

    async def claim_batch(self, owner: str, limit: int) -> tuple[list[Claim], float | None]:
        if self._errors:
            raise self._errors.pop()
        claims, self._claims = self._claims, []
        return claims, None


async def test_a_store_that_is_away_is_tried_again():
    async with scene("quick") as at:
        with at.valkey.client() as client:
            client.set("arq:job:later", b'{"t":null,"f":"pipeserve_run","a":[],"k":{},"et":1}', ex=60)
        told = Told()
        errors: list[Exception] = [StoreUnavailableError("away"), ConnectionResetError(), StoreUnavailableError("away")]
        async with running(at, told, source=Broken(errors, a_claim())):
            await eventually(lambda: told.started == ["later"], "the job starts once the store is back")


async def test_a_job_function_that_raises_does_not_end_the_loop():
    async with scene("quick") as at:
        told = Told()
        told.error = RuntimeError("broken hook")
        async with running(at, told):
            first = await at.submit()
            await eventually(lambda: told.dismissed == [first], "the attempt breaks")
            told.error = None
            second = await at.submit()
            await eventually(lambda: second in told.started, "the next job starts")
            # Nothing was written for the broken attempt: its lease runs out, and the ledger counts it as lost.
            assert (await at.job(first)).status is JobStatus.RUNNING


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (None, "job expired"),
        (b'{"t":null,"f":"other","a":[],"k":{},"et":1}', "function 'other' not found"),
        (b"\x80\x04pickle", "unable to deserialize job"),
    ],
)
async def test_a_job_that_arq_refuses_is_handed_over_with_the_reason(entry: bytes | None, reason: str):
    async with scene("quick") as at:
        with at.valkey.client() as client:
            if entry is not None:
                client.set("arq:job:later", entry, ex=60)
        told = Told()
        async with running(at, told, source=Broken([], a_claim())) as worker:
            await eventually(lambda: told.dismissed, "the job is refused")
            assert told.started == []
            assert reason in told.refused[0]
            assert worker.busy == 0
        with at.valkey.client() as client:
            assert client.exists("arq:result:later") == 0, "arq kept no result"


async def test_a_stopped_worker_claims_nothing_and_returns_while_jobs_go_on():
    async with scene("quick") as at:
        told = Told()
        async with running(at, told) as worker:
            first = await at.submit()
            await eventually(lambda: told.started == [first], "the job starts")
            worker.stop()
            await eventually(lambda: worker.main_task is not None and worker.main_task.done(), "the loop returns")
            await at.submit()
            assert worker.busy == 1
            told.go_on.set()
            await worker.wait_idle()
            assert told.started == [first]


async def test_the_health_record_is_the_workers_own_and_goes_with_it():
    async with scene("quick") as at:
        key = f"{at.jobs.queue_name}:health-check:me"
        with at.valkey.client() as client:
            async with running(at, Told()):
                await eventually(lambda: client.pttl(key) > 0, "the record is there, with a time to live")
            assert client.exists(key) == 0
