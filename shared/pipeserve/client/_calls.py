"""Calls of the pipeline, without any I/O: at once, as a job, and as many jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from pipeserve.client._options import Options
from pipeserve.client._protocol import (
    JSON_HEADERS,
    REPLY_SECONDS,
    Reply,
    Request,
    error_of,
    json_object,
    retry_after,
    unexpected,
)
from pipeserve.client.result import Result
from pipeserve.errors import Problem, ProblemError, error_from_problem


@dataclass(frozen=True, slots=True)
class Accepted:
    """The service took the call on as a job."""

    job_id: str


def invoke_request(parameters: Mapping[str, Any], options: Options) -> Request:
    """A synchronous call."""
    _no_id_for(options, "a synchronous call")
    headers, repeatable = _headers(options)
    read_timeout = None  # only the service knows how long it waits before it answers 202
    if options.wait is not None:
        headers["Prefer"] = f"wait={options.wait:g}"
        read_timeout = options.wait + REPLY_SECONDS
    return Request("POST", "/invoke", _json(_call(parameters, options)), headers, read_timeout, repeatable)


def submit_request(parameters: Mapping[str, Any], options: Options) -> Request:
    """An asynchronous call."""
    headers, repeatable = _headers(options)
    content = _json(_call(parameters, options))
    if options.job_id is not None:  # which is a key as well
        return Request("PUT", f"/jobs/{options.job_id}", content, headers, repeatable=True)
    return Request("POST", "/invoke?mode=async", content, headers, repeatable=repeatable)


def batch_request(calls: Sequence[Mapping[str, Any]], options: Options) -> Request:
    """Many asynchronous calls with the same options."""
    _no_id_for(options, "many jobs")
    headers, repeatable = _headers(options)
    content = _json({"items": [_call(parameters, options) for parameters in calls]})
    return Request("POST", "/invoke/batch", content, headers, repeatable=repeatable)


def parse_invoke(reply: Reply) -> Result | Accepted:
    """A synchronous call's reply: its result, or the job that it became. Raises what the service answered."""
    raw = json_object(reply, expected=(200, 202))
    try:
        if reply.status == 202:
            return Accepted(raw["job_id"])
        return Result(raw["job_id"], raw["outputs"], raw.get("metadata") or {}, raw.get("execution_time"))
    except KeyError as error:
        raise unexpected(reply, f"it has no member {error}") from None


def parse_submit(reply: Reply) -> Accepted:
    """An asynchronous call's reply. Raises what the service answered."""
    raw = json_object(reply, expected=(202,))
    try:
        return Accepted(raw["job_id"])
    except KeyError as error:
        raise unexpected(reply, f"it has no member {error}") from None


def parse_batch(reply: Reply, *, count: int) -> list[Accepted | ProblemError]:
    """Each call's job or error, in the order of the ``count`` calls. Raises what the service answered for all."""
    items = json_object(reply, expected=(202,)).get("jobs") if reply.status == 202 else _refusals(reply)
    if not isinstance(items, list) or len(cast("list[Any]", items)) != count:
        raise unexpected(reply, f"it has no list 'jobs' with {count} members")
    return [_item(reply, item) for item in cast("list[Any]", items)]


def _refusals(reply: Reply) -> Any:
    """The items of a batch of which none was accepted: a problem, with each item's own in it."""
    error = error_of(reply)
    raw: Any = from_json(reply.body) if isinstance(error, ProblemError) else {}
    if "jobs" not in raw:
        raise error
    return raw["jobs"]


def _item(reply: Reply, item: Any) -> Accepted | ProblemError:
    try:
        if "error" not in item:
            return Accepted(item["job_id"])
        return error_from_problem(Problem.model_validate(item["error"]), retry_after=retry_after(reply))
    except (KeyError, TypeError, ValidationError):
        raise unexpected(reply, "one of its jobs is neither a job nor a problem") from None


def _headers(options: Options) -> tuple[dict[str, str], bool]:
    """A call's headers, and whether it may be sent again."""
    if options.idempotency_key is None:
        return dict(JSON_HEADERS), False
    return {**JSON_HEADERS, "Idempotency-Key": options.idempotency_key}, True


def _no_id_for(options: Options, what: str) -> None:
    if options.job_id is not None:
        raise ValueError(f"job_id: it names one job that is submitted; {what} can't have it")


def _call(parameters: Mapping[str, Any], options: Options) -> dict[str, Any]:
    return {"parameters": dict(parameters), **options.body()}


def _json(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body, default=_model_as_json)
    except TypeError as error:
        if "64-bit" not in str(error):
            raise
        return to_json(body, inf_nan_mode="null")  # slower, but whole numbers may be of any size


def _model_as_json(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    raise TypeError(f"a parameter of type {type(value).__name__} can't be sent as JSON")
