"""What schemathesis must know of the service that no OpenAPI document can say. It loads this file by name.

A call that lasts is a promise kept, not a fault: waits are made short, and jobs due in a year are made due at once,
since a stream of one would last as long.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis import CheckContext, HookContext
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

LONGEST_WAIT = 0.5

_OF_THE_SERVICES_OWN = frozenset({"/events", "/stream/{job_id}", "/jobs"})
"""They take a position or a cursor, and refuse one that the service did not give though it fits the schema."""


@schemathesis.hook
def map_query(_context: HookContext, query: Any) -> Any:
    """Waits are short."""
    if isinstance(query, dict) and isinstance(query.get("wait"), int | float) and query["wait"] > LONGEST_WAIT:
        return query | {"wait": LONGEST_WAIT}
    return query


@schemathesis.hook
def map_body(_context: HookContext, body: Any) -> Any:
    """Jobs are due at once."""
    if isinstance(body, dict) and isinstance(body.get("items"), list):
        return body | {"items": [_due(item) for item in body["items"]]}
    return _due(body)


def _due(item: Any) -> Any:
    return item | {"run_at": None} if isinstance(item, dict) and isinstance(item.get("run_at"), str) else item


@schemathesis.check
def nothing_of_the_service_breaks(
    context: CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """``not_a_server_error``, but for runs that took longer than the caller's own ``timeout``, such as 1e-38 s."""
    if response.status_code == 504 and response.json()["code"] == "timed_out":
        return
    not_a_server_error(context, response, case)


@schemathesis.check
def valid_data_is_accepted(context: CheckContext, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """The one of schemathesis, but for refusals that depend on what the service has."""
    if response.status_code == 410:  # a job that expired has no result
        return
    if response.status_code in (400, 422) and _depends_on_what_is_there(response.json(), case.path):
        return
    checks.positive_data_acceptance(context, response, case)


@schemathesis.check
def invalid_data_is_refused(context: CheckContext, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """The one of schemathesis, but for batches: those are accepted without their invalid items."""
    refused_in_part = response.status_code == 202 and any("error" in job for job in response.json().get("jobs", ()))
    if case.path == "/invoke/batch" and refused_in_part:
        return
    checks.negative_data_rejection(context, response, case)


def _depends_on_what_is_there(problem: Any, path: str) -> bool:
    if problem["code"] == "idempotency_mismatch":  # the key, or the id, is another request's
        return True
    if problem["code"] == "bad_request":
        return path in _OF_THE_SERVICES_OWN
    errors = problem.get("errors", ())
    # What goes with another kind of call, or is set up elsewhere; two spellings of one name; outputs of steps that this
    # pipeline has not.
    depends = {"duplicate", "not_available"}
    return bool(errors) and all(error["type"] in depends or error["name"].endswith("taps") for error in errors)
