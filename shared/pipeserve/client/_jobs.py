"""Questions about jobs, without any I/O: one job's record, log and end, and pages of many jobs."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from pydantic import ValidationError

from pipeserve.client._protocol import REPLY_SECONDS, Reply, Request, json_object, unexpected
from pipeserve.client.errors import UnexpectedReplyError
from pipeserve.client.log_line import LogLine
from pipeserve.client.result import Result
from pipeserve.errors import (
    ExpiredError,
    JobCanceledError,
    ProblemError,
    StepFailedError,
    TimedOutError,
    error_from_problem,
)
from pipeserve.events import Event, decode
from pipeserve.jobs import Job as JobRecord
from pipeserve.jobs import JobPage, JobStatus

CLOSE_SECONDS = 1.0
"""How long the service may take to close a stream that is at its end."""
STREAM_SILENCE_SECONDS = 50.0
"""A stream sends a ping every 15 s; three missed ones mean that nobody is there."""
PAGE = 100
"""Jobs of one page: a record may be large."""


def job_request(job_id: str, *, wait: float = 0.0) -> Request:
    """A job's record; ``wait`` is for how many seconds the service may hold the reply until the job has ended."""
    query = f"?wait={wait:g}" if wait > 0 else ""
    return Request("GET", f"{_job(job_id)}{query}", read_timeout=wait + REPLY_SECONDS)


def cancel_request(job_id: str, reason: str | None) -> Request:
    """Ask for a job's end."""
    query = "" if reason is None else "?" + urlencode({"reason": reason})
    return Request("POST", f"{_job(job_id)}/cancel{query}")


def retry_request(job_id: str, idempotency_key: str | None) -> Request:
    """Run an ended job's input again, as a new job."""
    # One of its own makes a retry that got no answer safe to send again.
    headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    return Request("POST", f"{_job(job_id)}/retry", headers=headers, repeatable=True)


def explain_request(job_id: str) -> Request:
    """Ask where a job's time went."""
    return Request("GET", f"{_job(job_id)}/explain")


def logs_request(job_id: str, after: int) -> Request:
    """The lines of a job's log that follow event number ``after``."""
    return Request("GET", f"{_job(job_id)}/logs?" + urlencode({"after": after}))


def stream_request(job_id: str, after: int) -> Request:
    """A job's events that follow number ``after``, as server-sent events."""
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if after:
        headers["Last-Event-ID"] = str(after)
    return Request("GET", f"/stream/{quote(job_id, safe='')}", headers=headers, read_timeout=STREAM_SILENCE_SECONDS)


class JobSearch:
    """The state of one walk over pages of jobs, newest first, up to ``limit`` of them. None: all."""

    def __init__(
        self, *, status: JobStatus | str | None, code: str | None, labels: Mapping[str, str] | None, limit: int | None
    ) -> None:
        given = {"status": status, "code": code}
        self._query = {name: str(value) for name, value in given.items() if value is not None}
        self._query |= {f"label.{name}": value for name, value in (labels or {}).items()}
        self._left = limit
        self._cursor: str | None = None
        self.done = limit is not None and limit <= 0

    def request(self) -> Request:
        """The request for the next page."""
        query = {**self._query, "limit": str(PAGE if self._left is None else min(PAGE, self._left))}
        if self._cursor is not None:
            query["cursor"] = self._cursor
        return Request("GET", "/jobs?" + urlencode(query))

    def page(self, reply: Reply) -> list[JobRecord]:
        """The jobs of a page. Raises what the service answered."""
        raw = json_object(reply, expected=(200,))
        try:
            page = JobPage.model_validate(raw)
        except ValidationError as error:
            raise unexpected(reply, f"it is no page of jobs: {error.errors()[0]['msg']}") from None
        jobs = page.jobs if self._left is None else page.jobs[: self._left]
        if self._left is not None:
            self._left -= len(jobs)
        self._cursor = page.next_cursor
        self.done = self._cursor is None or self._left == 0
        return jobs


class LogReader:
    """The state of one reading of a job's log lines, up to what there is now."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._after = 0
        self.done = False

    def request(self) -> Request:
        """The request for the next page."""
        return logs_request(self._job_id, self._after)

    def page(self, reply: Reply) -> list[LogLine]:
        """The lines of a page. Raises what the service answered."""
        raw = json_object(reply, expected=(200,))
        try:
            lines = [_line(line) for line in raw["logs"]]
            position = int(raw["next"])
            self.done = bool(raw["done"]) or position <= self._after
        except (KeyError, TypeError, ValueError) as error:
            raise unexpected(reply, f"it is no page of log lines ({error})") from None
        self._after = position
        return lines


def parse_job(reply: Reply) -> JobRecord:
    """A job's record. Raises what the service answered."""
    raw = json_object(reply, expected=(200,))
    try:
        return JobRecord.model_validate(raw)
    except ValidationError as error:
        raise unexpected(reply, f"it is no job: {error.errors()[0]['msg']}") from None


def parse_cancel(reply: Reply) -> JobStatus:
    """The job's state after a cancel. Raises AlreadyFinishedError, NotFoundError, …"""
    raw = json_object(reply, expected=(202,))
    try:
        return JobStatus(raw["status"])
    except (KeyError, ValueError) as error:
        raise unexpected(reply, f"it tells no state ({error})") from None


def parse_retry(reply: Reply) -> str:
    """The id of the new job. Raises NotRetryableError, NotFoundError, QueueFullError, …"""
    raw = json_object(reply, expected=(202,))
    try:
        return str(raw["job_id"])
    except KeyError as error:
        raise unexpected(reply, f"it has no member {error}") from None


def parse_explain(reply: Reply) -> dict[str, Any]:
    """Where the job's time went. Raises what the service answered."""
    return json_object(reply, expected=(200,))


def parse_event(data: str) -> Event:
    """One event of a stream. Raises UnexpectedReplyError."""
    try:
        return decode(data)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UnexpectedReplyError(f"the stream sent something that is no event: {error}") from None


def result_of(job: JobRecord) -> Result:
    """What a job that has ended gave. Raises the error that it ended with."""
    if job.error is not None:
        error = error_from_problem(job.error)
        error.job_id = error.job_id or job.job_id
        raise error
    if job.status is not JobStatus.COMPLETED:
        raise _ERROR_OF.get(job.status, StepFailedError)(job_id=job.job_id)
    metadata = {
        "pipeline_name": job.pipeline_name,
        "deployment_id": job.deployment_id,
        "run_name": job.run_name,
        "steps": [step.model_dump(mode="json") for step in job.steps],
    }
    return Result(job.job_id, job.outputs or {}, metadata, job.execution_time)


_ERROR_OF: dict[JobStatus, type[ProblemError]] = {
    JobStatus.CANCELED: JobCanceledError,
    JobStatus.EXPIRED: ExpiredError,
    JobStatus.TIMED_OUT: TimedOutError,
}


def _line(raw: dict[str, Any]) -> LogLine:
    return LogLine(
        seq=int(raw["seq"]),
        timestamp=datetime.fromisoformat(raw["timestamp"]),
        level=str(raw["level"]),
        logger=str(raw["logger"]),
        message=str(raw["message"]),
        step_name=raw.get("step_name"),
        attempt=int(raw.get("attempt", 1)),
        cut=bool(raw.get("cut", False)),
    )


def _job(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"
