"""The memory twin and the store, side by side: what one answers in a long random history, the other does."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from tests.contracts.stores import DEPLOYMENT, NO_VIEW, new_job, outcome

from pipeserve.errors import PipeserveError, ProblemError
from pipeserve.jobs import JobStatus
from pipeserve.runtime.memory import MemoryLedger, MemoryStore
from pipeserve.runtime.ports import IdempotencyKey
from pipeserve.settings import StoreSettings
from pipeserve.store import open_store
from pipeserve.store.ledger import RedisLedger

QUEUE_MAX = 30
LEASE = 300.0
"""Seconds; no lease runs out here."""


class History:
    """Random calls, the same for each ledger that is asked."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._jobs = [new_job().job_id]
        self._attempts: dict[str, int] = {}

    def next(self) -> tuple[str, tuple[Any, ...]]:
        """What to do next, and with what."""
        pick = self._random.choice
        what = pick(["submit"] * 9 + ["claim"] * 5 + ["cancel", "release", "finish", "finish", "get", "get"])
        owner, job_id = pick(["a", "b"]), pick(self._jobs)
        if what == "submit":
            key = pick([None, None, IdempotencyKey(pick("xy"), pick("klmnop"))])
            run_at = pick([None] * 5 + [time.time() + 500])
            job = new_job(
                lane=pick("abcde"), priority=pick([0, 0, 1, -1]), max_attempts=2, run_at=run_at, idempotency=key
            )
            self._jobs.append(job.job_id)
            return what, (job,)
        if what == "claim":
            return what, (owner, pick([1, 1, 2, 4]))
        if what == "release":
            return what, (owner, pick([True, False]))
        if what == "finish":
            status = pick([JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED])
            return what, (job_id, self._attempts.get(job_id, 0), status)
        return what, (job_id,)

    def note(self, claims: list[tuple[str, int]]) -> None:
        """These were claimed."""
        self._attempts |= dict(claims)


async def answer(ledger: MemoryLedger | RedisLedger, what: str, arguments: tuple[Any, ...]) -> Any:
    """What a ledger answers to one call, without the times."""
    try:
        match what, arguments:
            case "submit", (job,):
                return await ledger.submit(job)
            case "claim", (owner, limit):
                return [(claim.job_id, claim.attempt) for claim in await ledger.claim(owner, limit)]
            case "release", (owner, lost):
                return await ledger.release(owner, lost=lost)
            case "finish", (job_id, attempt, status):
                return await ledger.finish(job_id, attempt, [], NO_VIEW, outcome(job_id, attempt, status))
            case "cancel", (job_id,):
                return await ledger.cancel(job_id)
            case _, (job_id,):
                times = {"created_at", "run_at", "started_at", "completed_at"}
                job = await ledger.get(job_id)
                return None if job is None else job.model_dump(exclude=times)
    except ProblemError as refusal:
        return refusal.code, refusal.job_id
    except PipeserveError as refusal:
        return type(refusal)


@pytest.mark.parametrize("seed", range(6))
async def test_the_twins_answer_alike_through_a_random_history(store_url: str, seed: int) -> None:
    memory = MemoryStore(max_queue_size=QUEUE_MAX, lease_seconds=LEASE)
    settings = StoreSettings.from_environment(redis_url=store_url, max_queue_size=QUEUE_MAX, lease_seconds=LEASE)
    history = History(seed)
    async with open_store(settings) as store, store.deployment(DEPLOYMENT) as valkey:
        for step in range(200):
            what, arguments = history.next()
            one, other = [await answer(ledger, what, arguments) for ledger in (memory.ledger, valkey.ledger)]
            assert one == other, (step, what, arguments)
            if what == "claim":
                history.note(one)
        one, other = await memory.operations.figures(), await valkey.operations.figures()
        assert (one.jobs_by_status, one.queue_depth) == (other.jobs_by_status, other.queue_depth)
        assert (one.counters, one.failed, one.canceled) == (other.counters, other.failed, other.canceled)
