"""``GET /jobs/{id}/explain``: where a job's time went."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from pipeserve.errors import StoreUnavailableError
from pipeserve.events import EventType, event_type_of
from pipeserve.jobs import Job
from pipeserve.runtime.ports import LogEntry
from pipeserve_api.dependencies import JobsDep, ServicesDep
from pipeserve_api.explain import earlier_attempts, explain
from pipeserve_api.lookup import JobLookup
from pipeserve_api.models import Explanation
from pipeserve_api.openapi import problems

router = APIRouter(tags=["jobs"])
_PAGE = 1000  # entries of a log


@router.get(
    "/jobs/{job_id}/explain",
    response_model=Explanation,
    responses=problems(404, 503),
    summary="Explain where a job's time went",
)
async def explain_job(job_id: str, services: ServicesDep, jobs: JobsDep) -> Response:
    """In sentences and in figures, for a job in any state. Durations are in seconds."""
    job = await services.forecast.of(await jobs.get(job_id))
    ends = await _ends_of_attempts(job, jobs) if earlier_attempts(job) else []
    body = explain(job, services.definition, now=datetime.now(UTC), ends=ends)
    return Response(orjson.dumps(body, option=orjson.OPT_UTC_Z), media_type="application/json")


async def _ends_of_attempts(job: Job, jobs: JobLookup) -> list[str] | None:
    """Why its attempts ended before it did, as its log tells it; None: the store is away just now."""
    log = jobs.log_of(job.job_id)
    ends: list[str] = []
    after = 0
    with suppress(StoreUnavailableError):
        while entries := await log.read(after=after, limit=_PAGE):
            for entry in entries:
                if not isinstance(entry, LogEntry):
                    after = entry.last
                    continue
                after = entry.seq
                if event_type_of(entry.body) == EventType.ATTEMPT_LOST:
                    ends.append(orjson.loads(entry.body)["data"]["reason"])
            if after >= job.last_seq:
                break
        return ends
    return None
