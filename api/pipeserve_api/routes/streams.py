"""``GET /stream/{job_id}``: a job's log as Server-Sent Events, live, resumable by number."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from pipeserve.errors import BadRequestError, InvalidParametersError
from pipeserve.events import EventType
from pipeserve_api.dependencies import ServicesDep
from pipeserve_api.openapi import problems
from pipeserve_api.sse import RETRY, EventStream, snapshot_frame

router = APIRouter(tags=["jobs"])
_TYPES = frozenset(event_type.value for event_type in EventType)


@router.get(
    "/stream/{job_id}",
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The events"},
        204: {"description": "You have read everything"},
        **problems(400, 404, 422, 503),
    },
    summary="Follow a job",
)
async def stream_job(
    job_id: str,
    services: ServicesDep,
    last_event_id: Annotated[str | None, Header(description="Resume after this event.")] = None,
    after: Annotated[str | None, Query(description="The same, for the first request.")] = None,
    types: Annotated[list[str] | None, Query(description="Only events of these types (comma-separated).")] = None,
) -> Response:
    """A subscriber without a position gets a ``snapshot`` first, then every event from the first."""
    wanted = _wanted(types)
    # A browser that reconnects repeats the URL with its first position; the header is where it really is.
    position = _position(after if last_event_id is None else last_event_id)
    job = await services.jobs.get(job_id)
    if position is not None and job.status.terminal and position >= job.last_seq:
        return Response(status_code=204)
    log = services.jobs.log_of(job_id)
    opening = RETRY
    if position is None:
        opening += snapshot_frame((await services.forecast.of(job)).model_dump_json().encode())
    return EventStream(lambda: log.follow(after=position or 0), drain=services.drain, opening=opening, types=wanted)


def _position(text: str | None) -> int | None:
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise BadRequestError(f"A position is the number of an event (its SSE id), not {text[:40]!r}.")
    return int(text)


def _wanted(types: list[str] | None) -> frozenset[str] | None:
    if types is None:
        return None
    wanted = frozenset(name.strip() for text in types for name in text.split(",") if name.strip())
    unknown = sorted(wanted - _TYPES)
    if unknown:
        detail = f"unknown event types: {', '.join(unknown)}; known: {', '.join(sorted(_TYPES))}"
        raise InvalidParametersError(detail, errors=[{"name": "types", "type": "enum", "detail": detail}])
    return wanted or None
