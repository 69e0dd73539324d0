"""The service's HTTP interface without any I/O: what a request and a reply are, and which error a reply stands for.

Both clients stand on this module, ``_calls`` and ``_jobs``, so that they can't drift apart: each only carries requests
out and brings replies in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from pipeserve.client.errors import ClientError, UnexpectedReplyError, UnreachableError
from pipeserve.errors import Problem, ProblemError, error_from_problem

REPLY_SECONDS = 30.0
"""How long the service may take for an answer, beyond what it was told to wait for a job."""
_RETRY_DIGITS = 9
"""Of seconds in a ``Retry-After``: more are no time, and enough of them are infinite."""
JSON_HEADERS: Mapping[str, str] = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, relative to the service's URL. ``read_timeout`` is in seconds; None: no limit."""

    method: str
    path: str
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    read_timeout: float | None = REPLY_SECONDS
    repeatable: bool = False
    """Whether it carries an idempotency key, so that sending it again can do no harm."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP reply, read to its end."""

    status: int
    headers: Mapping[str, str]
    """Looked up in lower case."""
    body: bytes


def base_headers(api_key: str | None) -> dict[str, str]:
    """What every request carries."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def json_object(reply: Reply, *, expected: tuple[int, ...]) -> dict[str, Any]:
    """The body of a reply with one of the ``expected`` statuses. Raises the error that any other reply stands for."""
    if reply.status not in expected:
        raise error_of(reply)
    try:
        raw = from_json(reply.body)  # not orjson, which makes floats of large whole numbers
    except ValueError:
        raise unexpected(reply, "it is not JSON") from None
    if not isinstance(raw, dict):
        raise unexpected(reply, "it is no JSON object")
    return raw  # pyright: ignore[reportUnknownVariableType]  # JSON: str keys, any values


def error_of(reply: Reply) -> ProblemError | ClientError:
    """The error that a reply other than success stands for."""
    if "problem+json" not in reply.headers.get("content-type", ""):
        return unexpected(reply, "it is no problem document")
    try:
        problem = Problem.model_validate_json(reply.body)
    except ValidationError:
        return unexpected(reply, "its problem document can't be read")
    error = error_from_problem(problem)
    asked = retry_after(reply)
    error.retry_after = error.retry_after if asked is None else asked
    return error


def retry_after(reply: Reply) -> float | None:
    """Seconds after which the service wants to be asked again."""
    value = reply.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() and len(value) <= _RETRY_DIGITS else None


def unreachable(url: str, cause: Exception, *, job_id: str | None = None) -> UnreachableError:
    """The error for a request that got no reply."""
    why = str(cause) or type(cause).__name__
    return UnreachableError(f"no answer from {url} ({why}): is the service running there?", job_id=job_id)


def unexpected(reply: Reply, why: str) -> UnexpectedReplyError:
    """The error for a reply that no service gives."""
    start = " ".join(reply.body[:200].decode("utf-8", "replace").split())
    return UnexpectedReplyError(
        f"unexpected reply, HTTP {reply.status}: {why}" + (f"; it begins {start!r}" if start else ""),
        status=reply.status,
        retry_after=retry_after(reply),
    )
