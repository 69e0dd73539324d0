"""Where a job is looked up: among this process's own runs first, then in the store.

A synchronous run reaches the store in the background (and never, when it is memory-only), so for a moment only the
process that runs it knows it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Self

from pipeserve.errors import NotFoundError, NotRetryableError
from pipeserve.events import is_terminal
from pipeserve.jobs import Job, JobPage, is_job_id
from pipeserve.runtime.follower import Follower, WokenFollower
from pipeserve.runtime.inline import InlineRuns
from pipeserve.runtime.inline_run import InlineRun
from pipeserve.runtime.ports import (
    Attachment,
    Attachments,
    Cancellation,
    EventLog,
    JobLedger,
    JobQuery,
    LogEntry,
    LogGap,
    NewJob,
)
from pipeserve.runtime.recording.run_log import RunLog
from pipeserve_api.callers import Caller

_AT_ONCE = 250
"""Entries of a run of this process that its reader is given at once."""


class JobLog(ABC):
    """One job's log, wherever it is kept."""

    @abstractmethod
    async def read(self, *, after: int, limit: int) -> list[LogEntry | LogGap]:
        """What follows number ``after``, at most ``limit`` entries. Empty: nothing yet."""

    @abstractmethod
    def follow(self, *, after: int) -> AbstractAsyncContextManager[Follower]:
        """All that follows ``after``, as it happens; it ends after the terminal event."""

    async def ended(self, *, after: int) -> bool:
        """Wait until the job has ended; ``after`` is a number before its end. False: the log was closed first."""
        async with self.follow(after=after) as entries:
            async for entry in entries:
                if isinstance(entry, LogEntry) and is_terminal(entry.body):
                    return True
        return False


class StoredLog(JobLog):
    """A log in the store."""

    def __init__(self, log: EventLog, job_id: str) -> None:
        self._log = log
        self._job_id = job_id

    async def read(self, *, after: int, limit: int) -> list[LogEntry | LogGap]:
        return await self._log.read(self._job_id, after=after, limit=limit)

    def follow(self, *, after: int) -> AbstractAsyncContextManager[Follower]:
        return self._log.follow(self._job_id, after=after)


class LocalLog(JobLog):
    """The log of a run of this process."""

    def __init__(self, log: RunLog) -> None:
        self._log = log

    async def read(self, *, after: int, limit: int) -> list[LogEntry | LogGap]:
        return self._log.read(after, limit)

    def follow(self, *, after: int) -> AbstractAsyncContextManager[Follower]:
        return _LocalFollower(self._log, after)


class _LocalFollower(WokenFollower):
    """Follows a run of this process."""

    __slots__ = ("_log",)

    def __init__(self, log: RunLog, after: int) -> None:
        super().__init__(after, asyncio.Event())
        self._log = log

    async def __aenter__(self) -> Self:
        self._changed = self._log.subscribe()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._log.unsubscribe(self._changed)

    def _read(self, after: int) -> tuple[Sequence[LogEntry | LogGap], bool]:
        closed = self._log.closed  # before reading: what is added in between comes with the next read
        entries = self._log.read(after, _AT_ONCE)
        return entries, closed and not entries


@dataclass(frozen=True, slots=True)
class JobDirectory:
    """Where the jobs of one deployment are. Nobody looks into it but as somebody."""

    inline: InlineRuns
    ledger: JobLedger
    log: EventLog
    attachments: Attachments

    def seen_by(self, caller: Caller) -> JobLookup:
        """What ``caller`` may see of it."""
        return JobLookup(self, caller)


class JobLookup:
    """Finds jobs of one deployment by id, for one caller.

    Every method raises NotFoundError for an id that no job has, and for another caller's job alike.
    """

    __slots__ = ("_attachments", "_caller", "_inline", "_ledger", "_log")

    def __init__(self, directory: JobDirectory, caller: Caller) -> None:
        self._inline = directory.inline
        self._ledger = directory.ledger
        self._log = directory.log
        self._attachments = directory.attachments
        self._caller = caller

    async def find(self, query: JobQuery) -> JobPage:
        """A page of the caller's jobs, newest first. Raises BadRequestError, StoreUnavailableError."""
        return await self._ledger.find(replace(query, caller=self._caller.sees))

    async def get(self, job_id: str) -> Job:
        """The job as it is now. Raises StoreUnavailableError too."""
        if not is_job_id(job_id):
            raise _unknown(job_id)
        job = self._inline.get(job_id) or await self._ledger.get(job_id)
        if job is None or not self._sees(job.caller):
            raise _unknown(job_id)
        if self._caller.grant is not None:  # what a link to one job shows is for anybody
            job = job.model_copy(update={"webhook": None, "worker": None, "caller": None})
        return job

    def log_of(self, job_id: str) -> JobLog:
        """The log of a job that :meth:`get` has found."""
        run = self._inline.find(job_id)
        return StoredLog(self._log, job_id) if run is None else LocalLog(run.log)

    async def visualizations(self, job_id: str) -> Sequence[Attachment]:
        """What a job that :meth:`get` has found shows, by index. Raises StoreUnavailableError."""
        run = self._inline.find(job_id)
        return await self._attachments.list(job_id) if run is None else run.log.attachments

    async def visualization(self, job_id: str, index: int) -> Attachment:
        """One of them. Raises NotFoundError, StoreUnavailableError too."""
        run = self._inline.find(job_id)
        if run is None:
            found = await self._attachments.get(job_id, index)
        else:
            found = next((attachment for attachment in run.log.attachments if attachment.index == index), None)
        if found is None:
            raise NotFoundError(f"The job has no visualization {index}.")
        return found

    async def input_of(self, job_id: str) -> NewJob:
        """What the job was submitted as, to submit it again. Raises NotRetryableError, StoreUnavailableError too."""
        if not is_job_id(job_id):
            raise _unknown(job_id)
        job_id = job_id.lower()
        await self._check_sees(job_id)
        run = self._inline.find(job_id)
        found = await self._ledger.input_of(job_id) if run is None else _input_of(run)
        if found is None:
            raise _unknown(job_id)
        return found

    async def cancel(self, job_id: str, *, reason: str | None, by: str | None) -> Cancellation:
        """End the job, or ask whoever runs it to stop. Raises StoreUnavailableError too."""
        if not is_job_id(job_id):
            raise _unknown(job_id)
        await self._check_sees(job_id)
        found = self._inline.cancel(job_id, reason=reason, by=by)
        if found is None:
            found = await self._ledger.cancel(job_id, reason=reason, by=by)
        if found is None:
            raise _unknown(job_id)
        return found

    async def _check_sees(self, job_id: str) -> None:
        """Before anything is told of a job, or done with it. No round trip for those who see all."""
        if self._caller.sees is not None:
            await self.get(job_id)

    def _sees(self, owner: str | None) -> bool:
        return self._caller.sees is None or self._caller.sees == owner


def _input_of(run: InlineRun) -> NewJob:
    """The same of a run that the store may not have yet, in the store's words."""
    job = run.job
    if run.result is None:
        raise NotRetryableError("The job has not ended yet.", job_id=job.job_id)
    if not job.keep_parameters or job.shown_parameters is not None:
        raise NotRetryableError(
            "The job's parameters were not kept, or only masked: send the request again.", job_id=job.job_id
        )
    return job


def _unknown(job_id: str) -> NotFoundError:
    return NotFoundError(f"There is no job {job_id[:80]!r} here. It never was, or its record has expired.")
