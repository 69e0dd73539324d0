"""Where a job is looked up: among this process's own runs first, then in the store.

A synchronous run reaches the store in the background (and never, when it is memory-only), so for a moment only the
process that runs it knows it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from pipeserve.errors import NotFoundError, NotRetryableError
from pipeserve.events import is_terminal
from pipeserve.jobs import Job, is_job_id
from pipeserve.runtime.follower import Follower, WokenFollower
from pipeserve.runtime.inline import InlineRuns
from pipeserve.runtime.inline_run import InlineRun
from pipeserve.runtime.ports import Attachment, Attachments, Cancellation, EventLog, JobLedger, LogEntry, LogGap, NewJob
from pipeserve.runtime.recording.run_log import RunLog


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
        super().__init__(after, log.subscribe())
        self._log = log

    async def __aexit__(self, *_: object) -> None:
        self._log.unsubscribe(self._changed)

    def _read(self, after: int) -> tuple[Sequence[LogEntry | LogGap], bool]:
        closed = self._log.closed  # before reading: what is added in between comes with the next read
        return self._log.read(after), closed


class JobLookup:
    """Finds jobs of one deployment by id. Every method raises NotFoundError for an id that no job has."""

    def __init__(self, inline: InlineRuns, ledger: JobLedger, log: EventLog, attachments: Attachments) -> None:
        self._inline = inline
        self._ledger = ledger
        self._log = log
        self._attachments = attachments

    async def get(self, job_id: str) -> Job:
        """The job as it is now. Raises StoreUnavailableError too."""
        if not is_job_id(job_id):
            raise _unknown(job_id)
        job = self._inline.get(job_id) or await self._ledger.get(job_id)
        if job is None:
            raise _unknown(job_id)
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
        run = self._inline.find(job_id)
        found = await self._ledger.input_of(job_id) if run is None else _input_of(run)
        if found is None:
            raise _unknown(job_id)
        return found

    async def cancel(self, job_id: str, *, reason: str | None, by: str | None) -> Cancellation:
        """End the job, or ask whoever runs it to stop. Raises StoreUnavailableError too."""
        if not is_job_id(job_id):
            raise _unknown(job_id)
        found = self._inline.cancel(job_id, reason=reason, by=by)
        if found is None:
            found = await self._ledger.cancel(job_id, reason=reason, by=by)
        if found is None:
            raise _unknown(job_id)
        return found


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
