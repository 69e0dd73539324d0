"""The jobs: list, look, wait, cancel, fetch the result, read the log."""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from pipeserve.errors import AlreadyFinishedError, NotFoundError
from pipeserve.jobs import Job, JobPage, JobStatus
from pipeserve.runtime.ports import JobQuery
from pipeserve_api import answers
from pipeserve_api.attend import attend
from pipeserve_api.cache_status import cache_headers, calls_of_job
from pipeserve_api.dependencies import AfterSeq, JobsDep, ServicesDep, WaitSeconds
from pipeserve_api.event_page import EventPage
from pipeserve_api.event_types import EventTypes, wanted_types
from pipeserve_api.lookup import JobLookup
from pipeserve_api.models import Accepted, Canceled, InvocationResult
from pipeserve_api.models import EventPage as EventPageBody
from pipeserve_api.openapi import problems
from pipeserve_api.problems import problem_of_run, problem_response

router = APIRouter(tags=["jobs"])
JSON = "application/json"


@router.get("/jobs", response_model=JobPage, responses=problems(400, 422, 503), summary="List jobs, newest first")
async def list_jobs(
    request: Request,
    services: ServicesDep,
    jobs: JobsDep,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this state.")] = None,
    code: Annotated[str | None, Query(max_length=100, description="Only jobs that ended with this error.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(description="next_cursor of the page before.")] = None,
) -> Response:
    """Filter by label with ``label.NAME=VALUE``; several must all match."""
    labels = {
        name.removeprefix("label."): value for name, value in request.query_params.items() if name.startswith("label.")
    }
    page = await jobs.find(JobQuery(status=status, code=code, labels=labels, limit=limit, cursor=cursor))
    return Response(page.model_dump_json(), media_type=JSON)


@router.get("/jobs/{job_id}", response_model=Job, responses=problems(404, 422, 503), summary="Show a job")
async def get_job(
    request: Request, job_id: str, services: ServicesDep, jobs: JobsDep, wait: WaitSeconds = 0
) -> Response:
    """With ``wait``, answers when the job has ended, or as it is after so many seconds."""
    job = await jobs.get(job_id)
    if wait > 0 and not job.status.terminal:
        log = jobs.log_of(job_id)
        await attend(log.ended(after=job.last_seq), seconds=wait, receive=request.receive, drain=services.drain)
        # A memory-only run is gone once it has ended; its caller has the result.
        job = await jobs.get(job_id)
    job = await services.forecast.of(job)
    headers = None if job.status.terminal else answers.RETRY_AFTER
    return Response(job.model_dump_json(), headers=headers, media_type=JSON)


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    response_model=Canceled,
    responses=problems(404, 409, 503),
    summary="Cancel a job",
)
async def cancel_job(
    request: Request,
    job_id: str,
    services: ServicesDep,
    jobs: JobsDep,
    reason: Annotated[str | None, Query(max_length=500, description="Kept with the job.")] = None,
) -> Response:
    """Harmless to repeat. A job that ended otherwise is 409; ``job_status`` then says how it ended."""
    found = await jobs.cancel(job_id, reason=reason, by="caller")
    if found.already_finished and found.status is not JobStatus.CANCELED:
        error = AlreadyFinishedError(f"The job has already ended as {found.status.value}.", job_id=job_id)
        problem = error.problem(instance=request.url.path)
        return problem_response(problem, extensions={"job_status": found.status.value})
    stopped = found.status is JobStatus.CANCELED
    message = (
        "The job is canceled." if stopped else "The job was asked to stop; it is canceled once its work has stopped."
    )
    body = {"job_id": job_id, "status": found.status.value, "message": message, "cancelled": True}
    return Response(orjson.dumps(body), 202, media_type=JSON)


@router.get(
    "/jobs/{job_id}/result",
    response_model=InvocationResult,
    responses={
        202: {"model": Accepted, "description": "Not ended yet"},
        **problems(404, 409, 410, 500, 503, 504, own_words=True),
    },
    summary="Fetch a job's result",
)
async def get_result(request: Request, job_id: str, services: ServicesDep, jobs: JobsDep) -> Response:
    """The same answer as a synchronous call's; 202 while the job runs; its problem, with its status, if it failed."""
    job = await jobs.get(job_id)
    if not job.status.terminal:
        body = answers.accepted(job_id, status=job.status, queue_position=job.queue_position)
        return Response(body, 202, answers.RETRY_AFTER, JSON)
    cached_calls = calls_of_job(job)
    headers = cache_headers(cached_calls)
    if job.status is not JobStatus.COMPLETED:
        problem = problem_of_run(job.status, job.error, job_id=job_id, instance=request.url.path)
        return problem_response(problem, headers=headers)
    body = answers.completed_job(
        job,
        applied=list(job.parameters or {}),
        cached_calls=cached_calls,
        deployment=services.deployment,
        definition=services.definition,
    )
    return Response(body, headers=headers, media_type=JSON)


@router.get(
    "/jobs/{job_id}/events",
    response_model=EventPageBody,
    responses=problems(404, 422, 503),
    summary="Read a job's log",
)
async def get_events(
    request: Request,
    job_id: str,
    services: ServicesDep,
    jobs: JobsDep,
    after: AfterSeq = 0,
    wait: WaitSeconds = 0,
    types: EventTypes = None,
) -> Response:
    """Pass ``next`` as ``after`` to go on; ``done`` says that nothing will follow. ``gaps`` names what was trimmed.

    With ``types``, ``next`` moves over what is left out, and ``wait`` goes on for as long as only such events come.
    """
    wanted = wanted_types(types)
    job = await jobs.get(job_id)
    page = EventPage(jobs.log_of(job_id), after=after, types=wanted)
    await page.read()
    ended = job.status.terminal
    if page.empty and not ended and wait > 0:
        await attend(page.follow(), seconds=wait, receive=request.receive, drain=services.drain)
        if page.empty and (ended := await _has_ended(jobs, job_id)):
            await page.read()  # it may have ended after the wait was over: then its end is still to be told
    if page.empty and ended:
        page.end()
    headers = None if page.done else answers.RETRY_AFTER
    return Response(page.json(), headers=headers, media_type=JSON)


async def _has_ended(jobs: JobLookup, job_id: str) -> bool:
    try:
        return (await jobs.get(job_id)).status.terminal
    except NotFoundError:  # a memory-only run is gone once it has ended
        return True
