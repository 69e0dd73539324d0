"""arq's ``Worker`` with wake-ups instead of polling, batch claims, and the job ledger as the only one who writes.

What stays arq's: the queue and its job format, ``run_job`` (reads the queue's entry, finds the function, runs it in a
task), cron, the health record. What is replaced, and why (arq 0.28; ``tests/worker/test_arq_contract.py`` watches it):

``main``
    arq sleeps 0.5 s between polls, so a job starts 242 ms after its submit in the median, and a slot that becomes free
    stays so until the next poll. Here the loop waits for an event: a wake-up token, a free slot, the next due job, or
    the fallback poll. A lost store ends arq's loop; here it backs off and goes on.
``_poll_iteration``
    arq reads the head of the queue and tries each id with WATCH and MULTI: six round trips a job, and workers that
    starve behind 100 running jobs. Here one Lua call claims as many due jobs as there are free slots. A failed task
    never ends the loop.
``finish_job``, ``finish_failed_job``
    arq writes its result and deletes its keys whoever owns the job by now. Here the ledger has done so, fenced by
    attempt, before the job function returned. Only a job that arq refuses to start still has to be ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any, Protocol

from arq.connections import ArqRedis
from arq.worker import Worker, func
from redis.exceptions import RedisError

from pipeserve.errors import StoreUnavailableError
from pipeserve.process_log import Log
from pipeserve.runtime.backoff import Backoff
from pipeserve.runtime.ports import Claim
from pipeserve.runtime.tasks import end_tasks
from pipeserve.store import Keys, WakeUps
from pipeserve.store.connection import is_outage
from pipeserve.store.engine import JOB_FUNCTION, deserialize, serialize

#: What a store that is away, restarting, read-only or full raises. None of it may end a worker.
STORE_ERRORS = (StoreUnavailableError, RedisError, OSError)

#: Attempts are the ledger's to count; arq's own count must never end a job.
_UNLIMITED = 2**31

_HEALTH_SECONDS = 30
_WAIT_SECONDS = 5.0


class ClaimSource(Protocol):
    """Where due jobs come from: the ledger."""

    async def claim_batch(self, owner: str, limit: int) -> tuple[Sequence[Claim], float | None]:
        """Up to ``limit`` due jobs, and when (Unix time in ms, by the store's clock) the next one is due, if any is."""
        ...


class Execution(Protocol):
    """What runs the jobs that a worker claims."""

    def accept(self, claim: Claim) -> None:
        """A job was claimed: keep its lease from now on."""
        ...

    async def run(self, claim: Claim) -> None:
        """Run it to its end and record that."""
        ...

    async def refuse(self, claim: Claim, reason: str) -> None:
        """End it as failed; it could not be started, for ``reason``."""
        ...

    def dismiss(self, claim: Claim) -> None:
        """This worker has nothing more to do with it."""
        ...


class Allowance(Protocol):
    """How many jobs this process may still claim over its life."""

    def allows(self, wanted: int) -> int:
        """So many of ``wanted``; below one: it has had its last."""
        ...

    def took(self, count: int) -> None:
        """It has claimed so many more."""
        ...


class JobWorker(Worker):
    """Claims jobs of one deployment and runs up to ``concurrency`` of them at once, until :meth:`stop`.

    It stops by itself when its ``allowance`` is used up. Run it with ``async_run()``, which returns after :meth:`stop`;
    jobs in hand go on meanwhile (see :mod:`pipeserve_worker.drain`). It neither handles signals nor closes ``pool``.
    """

    def __init__(
        self,
        *,
        pool: ArqRedis,
        keys: Keys,
        wake_ups: WakeUps,
        source: ClaimSource,
        execution: Execution,
        owner: str,
        concurrency: int,
        log: Log,
        allowance: Allowance | None = None,
        fallback_poll: float = 1.0,
    ) -> None:
        super().__init__(
            functions=[func(self._run_claimed, name=JOB_FUNCTION, max_tries=_UNLIMITED)],
            queue_name=keys.queue,
            redis_pool=pool,
            handle_signals=False,
            max_jobs=concurrency,
            keep_result=0,
            poll_delay=fallback_poll,
            max_tries=_UNLIMITED,
            health_check_interval=_HEALTH_SECONDS,
            health_check_key=f"{keys.queue}:health-check:{owner}",
            job_serializer=serialize,
            job_deserializer=deserialize,
            log_results=False,
        )
        self.job_timeout_s = None  # the runtime bounds each run
        self.owner = owner
        self._log = log
        self._wake_ups = wake_ups
        self._source = source
        self._execution = execution
        self._allowance = allowance
        self._claims: dict[str, Claim] = {}
        self._wake = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._looked = asyncio.Event()
        self._stopped = False
        self._waits_for_token = False
        self._has_token = False
        self._next_due_ms: float | None = None
        self._backoff = Backoff(0.05, 1.0)

    @property
    def busy(self) -> int:
        """Jobs in hand."""
        return self.job_counter

    def stop(self) -> None:
        """Claim no more jobs and let ``async_run`` return. Jobs in hand go on."""
        self._stopped = True
        self.allow_pick_jobs = False
        self._has_room.clear()
        self._wake.set()

    async def wait_idle(self) -> None:
        """Return when no job is in hand."""
        while self.tasks:
            await asyncio.wait(list(self.tasks.values()))
            self._reap()

    async def main(self) -> None:
        """arq's loop, woken instead of polling."""
        self.ctx["redis"] = self.pool
        listener = asyncio.create_task(self._listen_for_wakes(), name="wake-list")
        try:
            while not self._stopped:
                self._wake.clear()
                delay = await self._claim_or_back_off()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._wake.wait()
        finally:
            await end_tasks([listener])
            await self._leave()

    async def _leave(self) -> None:
        """Take nothing along that others need. A store that is away forgets by itself what is left then."""
        try:
            # A token whose reply was on its way, or that no look has answered yet: another worker should look.
            if self._waits_for_token or self._has_token:
                await self._wake_ups.give_back()
            await self.pool.delete(self.health_check_key)
        except Exception as error:
            if not _is_the_stores(error):
                raise

    async def _claim_or_back_off(self) -> float:
        """One round of the loop; the seconds to wait for the next, if nothing wakes it before."""
        try:
            await self._poll_iteration()
        except Exception as error:
            if not _is_the_stores(error):
                raise
            delay = self._backoff.next()
            self._log.warning("the store is away; trying again", error=str(error), delay=round(delay, 3))
            await asyncio.sleep(delay)
            return 0.0
        self._backoff.reset()
        self._looked.set()
        if self._next_due_ms is None:
            return self.poll_delay_s
        return min(max(self._next_due_ms / 1000 - time.time(), 0.001), self.poll_delay_s)

    async def _poll_iteration(self) -> None:
        self._reap()
        free = self.max_jobs - self.job_counter
        if self._allowance is not None:
            free = self._allowance.allows(free)
        if self.allow_pick_jobs and free > 0:
            claims, self._next_due_ms = await self._look(free)
            for claim in claims:
                self._start(claim)
            if self._allowance is not None:
                self._allowance.took(len(claims))
                if self._allowance.allows(1) < 1:
                    self.stop()
        else:
            self._next_due_ms = None  # a due job has to wait for a slot, and a free slot wakes the loop
        await self.heart_beat()

    async def _look(self, limit: int) -> tuple[Sequence[Claim], float | None]:
        has_token, self._has_token = self._has_token, False
        try:
            return await self._source.claim_batch(self.owner, limit)
        except BaseException:
            self._has_token |= has_token
            raise

    def _start(self, claim: Claim) -> None:
        previous = self.tasks.get(claim.job_id)
        self.job_counter += 1
        if self.job_counter >= self.max_jobs:
            self._has_room.clear()
        self._claims[claim.job_id] = claim
        self._execution.accept(claim)
        task = asyncio.create_task(self._carry(claim, previous), name=f"job-{claim.job_id}")
        self.tasks[claim.job_id] = task
        task.add_done_callback(self._slot_is_free)

    def _slot_is_free(self, _: asyncio.Task[None]) -> None:
        self.job_counter -= 1
        if not self._stopped:
            self._has_room.set()
        self._wake.set()

    async def _carry(self, claim: Claim, previous: asyncio.Task[Any] | None) -> None:
        """``run_job`` for this claim, again and again until its function has started.

        ``run_job`` reads the queue's entry first. If the store goes away just then, the claim stands: it is in the
        ledger and its lease is kept, so this worker must go on with it.
        """
        try:
            if previous is not None:  # an attempt that lost its lease here and has not stopped yet
                await asyncio.wait([previous])
                self._execution.accept(claim)
            backoff = Backoff(0.05, 1.0)
            while self._claims.get(claim.job_id) is claim:
                try:
                    await self.run_job(claim.job_id, int(claim.due_at * 1000))
                except Exception as error:
                    if not _is_the_stores(error):
                        raise
                    self._log.warning(
                        "the store went away before the job's start", job_id=claim.job_id, error=str(error)
                    )
                    await asyncio.sleep(backoff.next())
        finally:
            self._claims.pop(claim.job_id, None)
            self._execution.dismiss(claim)

    async def _run_claimed(self, ctx: dict[Any, Any], *_: Any, **__: Any) -> None:
        """The job function: arq hands over the id, and the claim says the rest."""
        claim = self._claims.pop(ctx["job_id"], None)
        if claim is not None:
            await self._execution.run(claim)

    def drop_unstarted(self) -> None:
        """Give up claims whose function has not started yet; what owns them afterwards is the caller's concern."""
        self._claims.clear()

    def _reap(self) -> None:
        for job_id, task in list(self.tasks.items()):
            if not task.done():
                continue
            del self.tasks[job_id]
            error = None if task.cancelled() else task.exception()
            if error is not None:
                # Its lease is no longer kept, so that the ledger counts this attempt as lost and starts another.
                self._log.error("the attempt broke outside the pipeline", job_id=job_id, exc_info=error)

    async def _listen_for_wakes(self) -> None:
        backoff = Backoff(0.05, 1.0)
        while True:
            await self._has_room.wait()
            try:
                self._waits_for_token = True
                woken = await self._wake_ups.wait(_WAIT_SECONDS)
                self._waits_for_token = False
                if not woken:
                    continue
                self._has_token = True
                backoff.reset()
                if not self._has_room.is_set():  # the slots were taken meanwhile: leave the token to an idle worker
                    await self._wake_ups.give_back()
                    self._has_token = False
            except STORE_ERRORS:
                self._waits_for_token = False
                await asyncio.sleep(backoff.next())
                continue
            # Look for jobs before the next BLPOP: otherwise one worker would empty the list before its first claim.
            self._looked.clear()
            self._wake.set()
            await self._looked.wait()

    async def finish_job(
        self,
        job_id: str,
        finish: bool,
        result_data: bytes | None,
        result_timeout_s: float | None,
        keep_result_forever: bool,
        incr_score: int | None,
        keep_in_progress: float | None,
    ) -> None:
        """Nothing: the ledger wrote the end and removed the queue's keys before the job function returned."""

    async def finish_failed_job(self, job_id: str, result_data: bytes | None) -> None:
        """arq could not start the job (its entry is gone or unreadable): end it in the ledger."""
        claim = self._claims.pop(job_id, None)
        if claim is not None:
            await self._execution.refuse(claim, _reason(result_data))


def _is_the_stores(error: Exception) -> bool:
    """Whether ``error`` says that the store is away. arq's own commands raise what its client does."""
    return isinstance(error, STORE_ERRORS) or is_outage(error)


def _reason(result_data: bytes | None) -> str:
    if result_data is None:
        return "its queue entry can't be read"
    return str(deserialize(result_data).get("r"))
