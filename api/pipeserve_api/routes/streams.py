"""``GET /stream/{job_id}``: a job's log as Server-Sent Events, live, resumable by number."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from pipeserve_api.dependencies import JobsDep, ServicesDep
from pipeserve_api.event_types import EventTypes, wanted_types
from pipeserve_api.openapi import STREAM, problems
from pipeserve_api.positions import NUMBER, event_number
from pipeserve_api.sse import RETRY, EventStream, JobFrames, snapshot_frame

router = APIRouter(tags=["jobs"])


@router.get(
    "/stream/{job_id}",
    response_class=Response,
    responses={
        200: {"content": STREAM, "description": "The events"},
        204: {"description": "You have read everything"},
        **problems(400, 404, 422, 503),
    },
    summary="Follow a job",
)
async def stream_job(
    job_id: str,
    services: ServicesDep,
    jobs: JobsDep,
    last_event_id: Annotated[
        str | None, Header(description="Resume after this event.", json_schema_extra=NUMBER)
    ] = None,
    after: Annotated[
        str | None, Query(description="The same, for the first request.", json_schema_extra=NUMBER)
    ] = None,
    types: EventTypes = None,
) -> Response:
    """A subscriber without a position gets a ``snapshot`` first, then every event from the first."""
    wanted = wanted_types(types)
    # A browser that reconnects repeats the URL with its first position; the header is where it really is.
    resumed, asked = event_number(last_event_id), event_number(after)
    position = asked if resumed is None else resumed
    job = await jobs.get(job_id)
    if position is not None and job.status.terminal and position >= job.last_seq:
        return Response(status_code=204)
    log = jobs.log_of(job_id)
    opening = RETRY
    if position is None:
        opening += snapshot_frame((await services.forecast.of(job)).model_dump_json().encode())
    frames = JobFrames(lambda: log.follow(after=position or 0), wanted)
    return EventStream(frames, drain=services.drain, opening=opening)
