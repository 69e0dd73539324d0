"""How a valid invocation becomes a job: whose it is, when it may run, and who is told of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from pipeserve.errors import InvalidParametersError
from pipeserve.runtime.ports import CacheUse, IdempotencyKey, NewJob, Webhook
from pipeserve.webhooks import DEFAULT_EVENTS, EVENT_TYPES, check_url
from pipeserve_api.callers import Caller
from pipeserve_api.schemas import Invocation
from pipeserve_api.services import Services

TENANT = "tenant"
"""The label that says whose job it is."""
MAX_LANE = 64


def new_job(
    services: Services,
    invocation: Invocation,
    *,
    job_id: str,
    caller: Caller,
    cache: CacheUse,
    idempotency: IdempotencyKey | None,
) -> NewJob:
    """The job for the workers that ``invocation`` asks for. Raises InvalidParametersError."""
    capture = services.definition.capture
    return NewJob(
        job_id=job_id,
        deployment_id=services.deployment.id,
        pipeline_name=services.definition.name,
        run_name=run_name_of(services, invocation),
        parameters=invocation.raw_parameters,
        labels=invocation.labels,
        timeout=invocation.timeout,
        total_steps=services.definition.total_steps,
        max_attempts=services.settings.runtime.max_attempts,
        keep_parameters=capture.metadata and not capture.memory_only,
        shown_parameters=services.runtime.shown_parameters(invocation.raw_parameters, invocation.parameters),
        keep_events=not capture.memory_only,
        cache=cache,
        caller=caller.owns,
        lane=lane_of(invocation.labels, caller.name),
        priority=invocation.priority,
        run_at=_start_of(invocation),
        expires_in=invocation.expires_in,
        idempotency=idempotency,
        webhook=webhook_of(services, invocation),
    )


def lane_of(labels: Mapping[str, str], caller: str) -> str:
    """Whose turn at the workers a job takes: its tenant's, or else its caller's."""
    lane = labels.get(TENANT) or caller
    if len(lane) > MAX_LANE or not lane.isprintable():
        return hashlib.sha256(lane.encode()).hexdigest()
    return lane


def run_name_of(services: Services, invocation: Invocation) -> str:
    """The name that was sent, or one with the pipeline's name and the time."""
    if invocation.run_name is not None:
        return invocation.run_name
    now = datetime.fromtimestamp(time.time(), UTC)
    return f"{services.definition.name}-{now:%Y%m%d-%H%M%S}-{now.microsecond:06d}"


def webhook_of(services: Services, invocation: Invocation) -> Webhook | None:
    """Where the job's events go. Raises InvalidParametersError for a receiver that this service can't send to."""
    wanted, settings = invocation.webhook, services.settings.webhooks
    if wanted is None:
        return None
    if settings.secret is None:
        raise _refused(
            "webhook", "not_available", "this service sends no webhooks: PIPESERVE_WEBHOOK_SECRET is not set"
        )
    try:
        check_url(wanted.url, settings.allow)
    except ValueError as error:
        raise _refused("webhook.url", "url", f"webhook.url: {error}") from None
    events = tuple(dict.fromkeys(wanted.events or DEFAULT_EVENTS))
    unknown = [event for event in events if event not in EVENT_TYPES]
    if unknown:
        detail = f"webhook.events: unknown: {', '.join(unknown)}; known: {', '.join(EVENT_TYPES)}"
        raise _refused("webhook.events", "enum", detail)
    return Webhook(wanted.url, events)


def refuse_terms_of_queued_jobs(invocation: Invocation) -> None:
    """Raise InvalidParametersError for what says when to start, of a call whose caller waits for its result."""
    for name in ("run_at", "expires_in"):
        if getattr(invocation, name) is not None:
            detail = f"{name} is for asynchronous calls: add mode=async, or Prefer: respond-async"
            raise _refused(name, "not_available", detail)


def refuse_taps(invocation: Invocation) -> None:
    """Raise InvalidParametersError for taps of a call that a worker runs."""
    if invocation.taps:
        detail = "taps belong to one synchronous call that runs in this process; a queued job keeps none"
        raise _refused("taps", "not_available", detail)


def _start_of(invocation: Invocation) -> float | None:
    """When the job is due, unless that is at once."""
    wait = 0.0 if invocation.run_at is None else invocation.run_at - time.time()
    if wait <= 0:
        return None
    if invocation.expires_in is not None and invocation.expires_in <= wait:
        raise _refused("expires_in", "too_short", "expires_in: the job would expire before its run_at")
    return invocation.run_at


def _refused(name: str, kind: str, detail: str) -> InvalidParametersError:
    return InvalidParametersError(detail, errors=[{"name": name, "type": kind, "detail": detail}])
