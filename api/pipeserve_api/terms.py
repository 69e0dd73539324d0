"""What a request may say of its job besides parameters: name, time limit, labels, place in the queue, webhook."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from pipeserve.webhooks import DEFAULT_EVENTS

MAX_LABELS = 64
MAX_PRIORITY = 10
MAX_EXPIRES_IN = 10 * 366 * 86_400
MAX_URL_LENGTH = 2048
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def _moment(value: Any) -> Any:
    """Only RFC 3339: pydantic alone would take numbers too, and guess what they count."""
    if isinstance(value, str) and _RFC3339.fullmatch(value) is None:
        raise PydanticCustomError("rfc3339", "must be RFC 3339 with an offset, such as 2026-01-31T12:00:00Z")
    if not isinstance(value, str | datetime | None):
        raise PydanticCustomError("rfc3339", "must be text: RFC 3339 with an offset, such as 2026-01-31T12:00:00Z")
    return value


class WebhookTerms(BaseModel):
    """Where to send a job's events."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, Field(min_length=1, max_length=MAX_URL_LENGTH, description="An http or https URL.")]
    events: Annotated[
        list[str] | None,
        Field(
            min_length=1,
            description=f"The types of event to send; if not given, the job's end: {', '.join(DEFAULT_EVENTS)}.",
        ),
    ] = None


class JobTerms(BaseModel):
    """What a body may say besides ``parameters``, however it is sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_name: Annotated[
        str | None, Field(min_length=1, max_length=200, description="A name for people; made up if not given.")
    ] = None
    timeout: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="Seconds that the run may take; past them it is 504 timed_out."),
    ] = None
    labels: Annotated[
        dict[str, str] | None,
        Field(
            max_length=MAX_LABELS,
            description="Kept with the job; GET /jobs filters by them. Tenants (tenant) take turns at the workers.",
        ),
    ] = None
    webhook: Annotated[WebhookTerms | None, Field(description="Where to send the job's events.")] = None
    priority: Annotated[
        int | None,
        Field(
            ge=-MAX_PRIORITY,
            le=MAX_PRIORITY,
            description="Among the waiting jobs of one tenant or caller, each step is worth a minute of waiting.",
        ),
    ] = None
    run_at: Annotated[
        AwareDatetime | None,
        BeforeValidator(_moment),
        Field(description="Not to be started before, with an offset (RFC 3339). Asynchronous calls only."),
    ] = None
    expires_in: Annotated[
        float | None,
        Field(
            gt=0,
            le=MAX_EXPIRES_IN,
            allow_inf_nan=False,
            description="Seconds from now by which it must have started, or it expires. Asynchronous calls only.",
        ),
    ] = None


class InvocationTerms(JobTerms):
    """What the body of one call may say besides ``parameters``."""

    taps: Annotated[
        list[str] | None,
        Field(description="Intermediate outputs to return, each as step.output. Synchronous calls only."),
    ] = None
