"""``GET /events``: the logs of several jobs as one stream of Server-Sent Events."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from pipeserve.jobs import Job
from pipeserve_api.dependencies import JobsDep, ServicesDep
from pipeserve_api.event_types import EventTypes, wanted_types
from pipeserve_api.merged_log import MergedFrames
from pipeserve_api.openapi import STREAM, problems
from pipeserve_api.positions import Positions
from pipeserve_api.services import Services
from pipeserve_api.sse import RETRY, EventStream, snapshot_frame

router = APIRouter(tags=["jobs"])
MOST_JOBS = 100


@router.get(
    "/events",
    response_class=Response,
    responses={
        200: {"content": STREAM, "description": "The events"},
        204: {"description": "You have read everything"},
        **problems(400, 404, 422, 503),
    },
    summary="Follow several jobs",
)
async def stream_jobs(
    services: ServicesDep,
    jobs: JobsDep,
    job: Annotated[list[str], Query(min_length=1, max_length=MOST_JOBS, description="A job's id; once for each job.")],
    last_event_id: Annotated[str | None, Header(description="Resume after this event.")] = None,
    after: Annotated[str | None, Query(description="The same, for the first request: the `id` of an event.")] = None,
    types: EventTypes = None,
) -> Response:
    """Without a position: a ``snapshot`` of each job first, then every event from the first. It ends with the last."""
    wanted = wanted_types(types)
    job_ids = list(dict.fromkeys(job_id.lower() for job_id in job))
    # A browser that reconnects repeats the URL with its first position; the header is where it really is.
    resumed, asked = Positions.read(last_event_id, job_ids), Positions.read(after, job_ids)
    given = asked if resumed is None else resumed
    known_jobs = [await jobs.get(job_id) for job_id in job_ids]
    positions = given or Positions(job_ids)
    finished = frozenset(
        at
        for at, (known, number) in enumerate(zip(known_jobs, positions.numbers, strict=True))
        if known.status.terminal and number >= known.last_seq
    )
    if given is not None and len(finished) == len(known_jobs):
        return Response(status_code=204)
    logs = [jobs.log_of(job_id) for job_id in job_ids]
    frames = MergedFrames(job_ids, logs, positions, finished=finished, types=wanted)
    opening = RETRY if given is not None else RETRY + await _snapshots(services, known_jobs)
    return EventStream(frames, drain=services.drain, opening=opening)


async def _snapshots(services: Services, jobs: list[Job]) -> bytes:
    return b"".join([snapshot_frame((await services.forecast.of(job)).model_dump_json().encode()) for job in jobs])
