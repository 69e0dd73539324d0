"""The record of every job of one deployment on Redis or Valkey, and the queue of those that wait."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pipeserve.errors import ProblemError, StaleAttemptError, StoreUnavailableError
from pipeserve.jobs import Job, JobPage
from pipeserve.runtime.ports import (
    Admission,
    Cancellation,
    Claim,
    FinishedRun,
    JobQuery,
    NewJob,
    Outcome,
    Reconciliation,
    Renewal,
    RunView,
)
from pipeserve.store.append_queue import AppendQueue
from pipeserve.store.connection import is_full
from pipeserve.store.inputs import read_input
from pipeserve.store.listing import list_page
from pipeserve.store.records import RecordReader
from pipeserve.store.scripts.append import Append, append
from pipeserve.store.scripts.cancel import cancel
from pipeserve.store.scripts.claim import claim
from pipeserve.store.scripts.finish import Finished, finish
from pipeserve.store.scripts.lease import release, renew
from pipeserve.store.scripts.position import positions
from pipeserve.store.scripts.prelude import Scope
from pipeserve.store.scripts.reconcile import reconcile
from pipeserve.store.scripts.record import open_run, record_runs
from pipeserve.store.scripts.submit import submit

_REMEMBERED = 10_000
"""Jobs whose last write is in doubt; more than one process ever runs at once."""


@dataclass(frozen=True, slots=True)
class _Unconfirmed:
    """What is known of an attempt's last write, whose reply was lost."""

    attempt: int
    written: tuple[bytes, ...]
    """Bodies at the front of that write that are in the log."""
    bodies: tuple[bytes, ...]
    """Bodies after them that may be."""
    batch: str


class RedisLedger:
    """A ``JobLedger`` on Redis.

    Every write can be repeated after StoreUnavailableError with the same arguments, or with more bodies after the
    first ones: what was written although its reply was lost is not written twice.
    """

    def __init__(self, scope: Scope, *, max_queue_size: int) -> None:
        self._scope = scope
        self._max_queue_size = max_queue_size
        self._unconfirmed: dict[str, _Unconfirmed] = {}
        self._records = RecordReader()
        self._appends = AppendQueue(scope)

    async def submit(self, job: NewJob) -> Admission:
        """Accept ``job``. Raises QueueFullError, IdempotencyMismatchError, StoreUnavailableError."""
        [admission] = await self.submit_many([job])
        if isinstance(admission, ProblemError):
            raise admission
        return admission

    async def submit_many(self, jobs: Sequence[NewJob]) -> list[Admission | ProblemError]:
        """Accept many, in one round trip; each is judged for itself. Raises StoreUnavailableError."""
        return await submit(self._scope, jobs, self._max_queue_size)

    async def open(self, job: NewJob, owner: str) -> Admission:
        """Record a synchronous run of this process as attempt 1, under a lease of ``owner``."""
        return await open_run(self._scope, job, owner)

    async def record(self, runs: Sequence[FinishedRun]) -> None:
        """Record synchronous runs that have ended, also one that this owner has open; one round trip for all."""
        await record_runs(self._scope, runs)

    async def get(self, job_id: str) -> Job | None:
        """The job as it is now."""
        fields, deliveries = await self._scope.connection.pipeline(
            [
                ("HGETALL", self._scope.keys.job(job_id)),
                ("LRANGE", self._scope.keys.deliveries(job_id), 0, -1),
            ]
        )
        jobs = await self._read({job_id: fields}, {job_id: deliveries})
        return jobs[0] if jobs else None

    async def input_of(self, job_id: str) -> NewJob | None:
        """What the job was submitted as. Raises NotRetryableError where its parameters were not kept."""
        fields = await self._scope.connection.call("HGETALL", self._scope.keys.job(job_id))
        return read_input(job_id, fields) if fields else None

    async def find(self, query: JobQuery) -> JobPage:
        """A page of jobs, newest first. Raises BadRequestError for a cursor that this ledger did not make."""
        page = await list_page(self._scope.connection, self._scope.keys, query)
        commands = [("HGETALL", self._scope.keys.job(job_id)) for job_id in page.job_ids]
        records = dict(zip(page.job_ids, await self._scope.connection.pipeline(commands), strict=True))
        return JobPage(jobs=await self._read(records), total=page.total, next_cursor=page.next_cursor)

    async def cancel(self, job_id: str, *, reason: str | None = None, by: str | None = None) -> Cancellation | None:
        """End a pending job at once, or ask the owner of a running one to stop. None: there is no such job."""
        return await cancel(self._scope, job_id, reason, by)

    async def claim(self, owner: str, limit: int) -> list[Claim]:
        """Take up to ``limit`` due jobs, oldest first, after taking back those whose lease ran out."""
        claims, _ = await self.claim_batch(owner, limit)
        return claims

    async def claim_batch(self, owner: str, limit: int) -> tuple[list[Claim], float | None]:
        """As ``claim``, and the Unix time in ms (the store's clock) at which the next queued job is due, if any."""
        return await claim(self._scope, owner, limit)

    async def renew(self, owner: str, job_ids: Sequence[str]) -> Renewal:
        """Extend the leases of these jobs by a whole lease from now; says which are lost and which to cancel.

        Then jobs of others whose lease ran out are taken back.
        """
        return await renew(self._scope, owner, job_ids)

    async def append(
        self, job_id: str, attempt: int, bodies: Sequence[bytes], view: RunView, *, ending: bool = False
    ) -> int:
        """Add events to the job's log and update its view. Returns the last number. Raises StaleAttemptError.

        ``ending``: a full store takes it too.
        """
        written = await self._confirm(job_id, attempt, bodies)
        rest, batch = tuple(bodies[len(written) :]), uuid.uuid4().hex
        with self._remembered(job_id, _Unconfirmed(attempt, written, rest, batch)):
            return await self._append(job_id, attempt, rest, view, batch, ending=ending)

    async def finish(self, job_id: str, attempt: int, bodies: Sequence[bytes], view: RunView, outcome: Outcome) -> bool:
        """Write the last events, state, result and terminal event together. Raises StaleAttemptError.

        False: nothing was written, because a cancel was accepted meanwhile and ``outcome`` is not ``canceled``.
        """
        try:
            written = await self._confirm(job_id, attempt, bodies)
        except StaleAttemptError:
            # Perhaps stale because this very finish was written and its reply lost: the script can tell.
            written = ()
        with self._remembered(job_id, _Unconfirmed(attempt, written, (), "")):
            finished = await finish(self._scope, job_id, attempt, bodies[len(written) :], view, outcome)
        if finished is Finished.STALE:
            raise StaleAttemptError.of(job_id, attempt)
        return finished is Finished.WRITTEN

    async def release(self, owner: str, *, lost: bool) -> int:
        """Give back all that ``owner`` holds; returns how many. ``lost`` counts against their attempts."""
        return await release(self._scope, owner, lost=lost)

    async def reconcile(self, owner: str) -> Reconciliation | None:
        """Set right what no crash should have left. None: another process does it now, or has of late."""
        return await reconcile(self._scope, owner)

    async def _confirm(self, job_id: str, attempt: int, bodies: Sequence[bytes]) -> tuple[bytes, ...]:
        """Settle a write in doubt that ``bodies`` repeats: which of them, from the first on, are in the log."""
        doubt = self._unconfirmed.pop(job_id, None)
        if doubt is None or doubt.attempt != attempt:
            return ()
        repeated = doubt.written + doubt.bodies
        if tuple(bodies[: len(repeated)]) != repeated:
            return ()
        if doubt.bodies:
            with self._remembered(job_id, doubt):
                await self._append(job_id, attempt, doubt.bodies, RunView(), doubt.batch)
        return repeated

    async def _append(
        self, job_id: str, attempt: int, bodies: Sequence[bytes], view: RunView, batch: str, *, ending: bool = False
    ) -> int:
        one = Append(job_id, attempt, bodies, view, batch)
        if ending:
            [seq] = await append(self._scope, [one], ending=True)
            if isinstance(seq, Exception):
                raise seq
        else:
            seq = await self._appends.add(one)
        if seq is None:
            raise StaleAttemptError.of(job_id, attempt)
        return seq

    @contextmanager
    def _remembered(self, job_id: str, write: _Unconfirmed) -> Generator[None]:
        try:
            yield
        except (StoreUnavailableError, asyncio.CancelledError) as error:
            if error.__cause__ is not None and is_full(error.__cause__):
                # Refused with its first write, so not in doubt: a finish must not try to append it once more.
                write = replace(write, bodies=())
            while len(self._unconfirmed) >= _REMEMBERED:
                del self._unconfirmed[next(iter(self._unconfirmed))]
            self._unconfirmed[job_id] = write
            raise

    async def _read(
        self, records: Mapping[str, Mapping[bytes, bytes]], deliveries: Mapping[str, Sequence[bytes]] | None = None
    ) -> list[Job]:
        """The jobs with these records, without those that are gone."""
        waiting = [job_id for job_id, fields in records.items() if fields.get(b"status") == b"pending"]
        places = dict(zip(waiting, await positions(self._scope, waiting), strict=True))
        jobs = [
            self._records.read(job_id, fields, places.get(job_id), (deliveries or {}).get(job_id, ()))
            for job_id, fields in records.items()
            if fields
        ]
        return [job for job in jobs if job is not None]
