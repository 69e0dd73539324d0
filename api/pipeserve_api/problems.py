"""Every error of the service as ``application/problem+json`` (RFC 9457), from one place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, cast

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from pipeserve.errors import (
    BadRequestError,
    InvalidParametersError,
    JobCanceledError,
    Problem,
    ProblemError,
    StepFailedError,
    TimedOutError,
)
from pipeserve.events import clean_text
from pipeserve.jobs import JobStatus

MEDIA_TYPE = "application/problem+json"
_CODES = {401: "unauthorized", 403: "forbidden", 404: "not_found", 413: "payload_too_large"}


def problem_response(
    problem: Problem,
    *,
    headers: Mapping[str, str] | None = None,
    retry_after: float | None = None,
    extensions: Mapping[str, Any] | None = None,
) -> Response:
    """``problem`` as an answer. ``extensions`` become further members; 429 and 503 always carry ``Retry-After``."""
    sent = dict(headers or {})
    if retry_after is None and problem.status in (429, 503):
        retry_after = 1.0
    if retry_after is not None:
        sent["retry-after"] = str(max(1, math.ceil(retry_after)))
    body = problem.as_dict() | dict(extensions or {})
    return Response(encode(body), problem.status, sent, MEDIA_TYPE)


def encode(body: dict[str, Any]) -> bytes:
    """``body``, which has a problem's members in it, as JSON, whatever a step has put into them."""
    try:
        return orjson.dumps(body)
    except TypeError:  # a lone surrogate, or a whole number of more than 64 bits
        return to_json(_clean(body))


def _clean(value: Any) -> Any:
    """``value`` with all text such that UTF-8 can carry it."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(key): _clean(inner) for key, inner in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in cast(list[Any], value)]
    return value


def error_response(
    error: ProblemError, *, instance: str, headers: Mapping[str, str] | None = None, job_id: str | None = None
) -> Response:
    """``error`` as an answer to a request for ``instance`` (its path)."""
    problem = error.problem(job_id=job_id, instance=instance)
    return problem_response(problem, headers=headers, retry_after=error.retry_after)


def problem_of_run(status: JobStatus, error: Problem | None, *, job_id: str, instance: str) -> Problem:
    """Why a run that did not complete has no result. A record that names no error is described by its state."""
    if error is not None:
        return error.model_copy(update={"instance": instance, "job_id": error.job_id or job_id})
    kind: ProblemError
    match status:
        case JobStatus.CANCELED | JobStatus.CANCELING:
            kind = JobCanceledError(job_id=job_id)
        case JobStatus.TIMED_OUT:
            kind = TimedOutError(job_id=job_id)
        case _:
            kind = StepFailedError(f"The job ended as {status.value}.", job_id=job_id)
    return kind.problem(instance=instance)


def install(app: FastAPI) -> None:
    """Make ``app`` answer every error with a problem document."""
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_unexpected)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return error_response(error, instance=request.url.path)


async def _on_validation(request: Request, error: Exception) -> Response:
    """What FastAPI refuses in a path or query."""
    assert isinstance(error, RequestValidationError)
    errors = [
        {"name": ".".join(str(part) for part in item["loc"][1:]), "type": item["type"], "detail": item["msg"]}
        for item in error.errors()
    ]
    detail = "; ".join(f"{item['name']}: {item['detail']}" for item in errors)
    return error_response(InvalidParametersError(detail, errors=errors), instance=request.url.path)


async def _on_http(request: Request, error: Exception) -> Response:
    """What the router itself refuses: an unknown path, or a method that a path does not have."""
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"There is no route {request.url.path}. /docs lists those there are."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(_methods_of(request)) or "another method"
        error.headers = {**(error.headers or {}), "Allow": allowed}
        detail = f"{request.url.path} does not take {request.method}; it takes {allowed}."
    code = _CODES.get(error.status_code, BadRequestError.code if error.status_code < 500 else "internal_error")
    problem = Problem(
        type=f"urn:pipeserve:problem:{code}",
        title=HTTPStatus(error.status_code).phrase,
        status=error.status_code,
        detail=detail,
        instance=request.url.path,
        code=code,
    )
    return problem_response(problem, headers=error.headers)


def _methods_of(request: Request) -> list[str]:
    """Of all routes with the path: the router's own ``Allow`` names those of the first only."""
    found = [route for route in _routes(request.app.router) if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in found for method in route.methods or ()})


def _routes(router: Any) -> Iterator[Route]:
    for route in router.routes:
        inner = getattr(route, "original_router", None)  # FastAPI keeps what it includes whole; here without a prefix
        if inner is not None:
            yield from _routes(inner)
        elif isinstance(route, Route):
            yield route


async def _on_unexpected(request: Request, _error: Exception) -> Response:
    """A fault of this service. Starlette raises it again after this answer, so the server logs its traceback."""
    return problem_response(unexpected_problem(request.url.path))


def unexpected_problem(instance: str) -> Problem:
    """What a request for ``instance`` is told of a fault of this service. Whoever answers so logs the traceback."""
    return Problem(
        type="urn:pipeserve:problem:internal_error",
        title="Internal Server Error",
        status=500,
        detail="The service failed while it answered this request; its log says why.",
        instance=instance,
        code="internal_error",
    )
