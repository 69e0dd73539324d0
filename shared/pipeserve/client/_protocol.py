"""The service's HTTP interface without any I/O: calls become requests, replies become values or errors.

Both clients stand on this module, so that they can't drift apart: each only carries requests out and brings replies in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import quote, urlencode

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from pipeserve.client.errors import ClientError, UnexpectedReplyError, UnreachableError
from pipeserve.client.result import Result
from pipeserve.errors import (
    ExpiredError,
    JobCanceledError,
    Problem,
    ProblemError,
    StepFailedError,
    TimedOutError,
    error_from_problem,
)
from pipeserve.events import Event, decode
from pipeserve.jobs import Job as JobRecord
from pipeserve.jobs import JobStatus

CLOSE_SECONDS = 1.0
"""How long the service may take to close a stream that is at its end."""
CONNECT_SECONDS = 10.0
REPLY_SECONDS = 30.0
"""How long the service may take for an answer, beyond what it was told to wait for a job."""
KEEP_ALIVE_SECONDS = 2.0
"""Idle connections are dropped before uvicorn does it (after 5 s), or a request would meet a closing one."""
STREAM_SILENCE_SECONDS = 50.0
"""A stream sends a ping every 15 s; three missed ones mean that nobody is there."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, relative to the service's URL. ``read_timeout`` is in seconds; None: no limit."""

    method: str
    path: str
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    read_timeout: float | None = REPLY_SECONDS


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP reply, read to its end."""

    status: int
    headers: Mapping[str, str]
    """Looked up in lower case."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Options:
    """What ``with_options`` sets."""

    timeout: float | None = None
    """Seconds that a run may take; then it ends as ``timed_out``."""
    wait: float | None = None
    """Seconds for which the service holds a synchronous call before it goes on as a job."""

    def but(self, *, timeout: float | None, wait: float | None) -> Self:
        """These options, with those given in place of the old."""
        return replace(
            self,
            timeout=self.timeout if timeout is None else timeout,
            wait=self.wait if wait is None else wait,
        )


@dataclass(frozen=True, slots=True)
class Accepted:
    """The service took the call on as a job."""

    job_id: str


def base_headers(api_key: str | None) -> dict[str, str]:
    """What every request carries."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def invoke_request(parameters: Mapping[str, Any], options: Options) -> Request:
    """A synchronous call."""
    headers = {"Content-Type": "application/json"}
    read_timeout = None  # only the service knows how long it waits before it answers 202
    if options.wait is not None:
        headers["Prefer"] = f"wait={options.wait:g}"
        read_timeout = options.wait + REPLY_SECONDS
    return Request("POST", "/invoke", _body(parameters, options), headers, read_timeout)


def submit_request(parameters: Mapping[str, Any], options: Options) -> Request:
    """An asynchronous call."""
    headers = {"Content-Type": "application/json"}
    return Request("POST", "/invoke?mode=async", _body(parameters, options), headers)


def job_request(job_id: str, *, wait: float = 0.0) -> Request:
    """A job's record; ``wait`` is for how many seconds the service may hold the reply until the job has ended."""
    query = f"?wait={wait:g}" if wait > 0 else ""
    return Request("GET", f"/jobs/{quote(job_id, safe='')}{query}", read_timeout=wait + REPLY_SECONDS)


def cancel_request(job_id: str, reason: str | None) -> Request:
    """Ask for a job's end."""
    query = "" if reason is None else "?" + urlencode({"reason": reason})
    return Request("POST", f"/jobs/{quote(job_id, safe='')}/cancel{query}")


def stream_request(job_id: str, after: int) -> Request:
    """A job's events that follow number ``after``, as server-sent events."""
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if after:
        headers["Last-Event-ID"] = str(after)
    return Request("GET", f"/stream/{quote(job_id, safe='')}", headers=headers, read_timeout=STREAM_SILENCE_SECONDS)


def _body(parameters: Mapping[str, Any], options: Options) -> bytes:
    body: dict[str, Any] = {"parameters": dict(parameters)}
    if options.timeout is not None:
        body["timeout"] = options.timeout
    try:
        return orjson.dumps(body, default=_model_as_json)
    except TypeError as error:
        if "64-bit" not in str(error):
            raise
        return to_json(body, inf_nan_mode="null")  # slower, but whole numbers may be of any size


def _model_as_json(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"a parameter of type {type(value).__name__} can't be sent as JSON")


def parse_invoke(reply: Reply) -> Result | Accepted:
    """A synchronous call's reply: its result, or the job that it became. Raises what the service answered."""
    raw = _object(reply, expected=(200, 202))
    try:
        if reply.status == 202:
            return Accepted(raw["job_id"])
        return Result(raw["job_id"], raw["outputs"], raw.get("metadata") or {}, raw.get("execution_time"))
    except KeyError as error:
        raise _unexpected(reply, f"it has no member {error}") from None


def parse_submit(reply: Reply) -> Accepted:
    """An asynchronous call's reply. Raises what the service answered."""
    raw = _object(reply, expected=(202,))
    try:
        return Accepted(raw["job_id"])
    except KeyError as error:
        raise _unexpected(reply, f"it has no member {error}") from None


def parse_job(reply: Reply) -> JobRecord:
    """A job's record. Raises what the service answered."""
    raw = _object(reply, expected=(200,))
    try:
        return JobRecord.model_validate(raw)
    except ValidationError as error:
        raise _unexpected(reply, f"it is no job: {error.errors()[0]['msg']}") from None


def parse_cancel(reply: Reply) -> JobStatus:
    """The job's state after a cancel. Raises AlreadyFinishedError, NotFoundError, …"""
    raw = _object(reply, expected=(202,))
    try:
        return JobStatus(raw["status"])
    except (KeyError, ValueError) as error:
        raise _unexpected(reply, f"it tells no state ({error})") from None


def parse_event(data: str) -> Event:
    """One event of a stream. Raises UnexpectedReplyError."""
    try:
        return decode(data)
    except (ValueError, KeyError, TypeError) as error:
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


def error_of(reply: Reply) -> ProblemError | ClientError:
    """The error that a reply other than success stands for."""
    if "problem+json" not in reply.headers.get("content-type", ""):
        return _unexpected(reply, "it is no problem document")
    try:
        problem = Problem.model_validate_json(reply.body)
    except ValidationError:
        return _unexpected(reply, "its problem document can't be read")
    return error_from_problem(problem, retry_after=retry_after(reply))


def retry_after(reply: Reply) -> float | None:
    """Seconds after which the service wants to be asked again."""
    value = reply.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else None


def unreachable(url: str, cause: Exception, *, job_id: str | None = None) -> UnreachableError:
    """The error for a request that got no reply."""
    why = str(cause) or type(cause).__name__
    return UnreachableError(f"no answer from {url} ({why}): is the service running there?", job_id=job_id)


def _object(reply: Reply, *, expected: tuple[int, ...]) -> dict[str, Any]:
    if reply.status not in expected:
        raise error_of(reply)
    try:
        raw = from_json(reply.body)  # not orjson, which makes floats of large whole numbers
    except ValueError:
        raise _unexpected(reply, "it is not JSON") from None
    if not isinstance(raw, dict):
        raise _unexpected(reply, "it is no JSON object")
    return raw  # pyright: ignore[reportUnknownVariableType]  # JSON: str keys, any values


def _unexpected(reply: Reply, why: str) -> UnexpectedReplyError:
    start = " ".join(reply.body[:200].decode("utf-8", "replace").split())
    return UnexpectedReplyError(
        f"unexpected reply, HTTP {reply.status}: {why}" + (f"; it begins {start!r}" if start else ""),
        status=reply.status,
    )
