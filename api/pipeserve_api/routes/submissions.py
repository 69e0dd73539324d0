"""Other ways to submit jobs than ``POST /invoke``: under an id that the caller chose, many at once, one once more."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from pipeserve.errors import DrainingError, IdempotencyMismatchError, InvalidParametersError, ProblemError
from pipeserve.jobs import JobStatus, is_job_id, new_job_id
from pipeserve.runtime.ports import Admission, NewJob
from pipeserve_api import answers, idempotency
from pipeserve_api.body import read_body
from pipeserve_api.call import Call
from pipeserve_api.callers import Caller, caller_in
from pipeserve_api.dependencies import JobsDep, ServicesDep
from pipeserve_api.idempotency import REPLAYED
from pipeserve_api.job_spans import submitting
from pipeserve_api.lookup import JobLookup
from pipeserve_api.models import Accepted, BatchAccepted
from pipeserve_api.openapi import BATCH_BODY, JOB_BODY, KEY_HEADER, REPLAYED_HEADERS, problems
from pipeserve_api.preferences import CallPreferences
from pipeserve_api.problems import problem_response
from pipeserve_api.services import Services
from pipeserve_api.submission import lane_of, new_job

router = APIRouter(tags=["jobs"])
OwnJobId = Annotated[str, Path(json_schema_extra={"format": "uuid"})]
_AT_A_STRETCH = 20  # items that are validated before others on this loop get a turn
_NOBODY = 499  # never sent: the caller left before it had sent its request

_log = logging.getLogger(__name__)


@router.put(
    "/jobs/{job_id}",
    status_code=202,
    response_model=Accepted,
    responses={202: REPLAYED_HEADERS, **problems(400, 413, 422, 429, 503)},
    openapi_extra=JOB_BODY,
    summary="Submit a job under an id of your own",
)
async def put_job(request: Request, job_id: OwnJobId, services: ServicesDep) -> Response:
    """As an asynchronous ``POST /invoke``. The id, a UUID, is the key: the same request again is the same job."""
    if not is_job_id(job_id):
        detail = "the id must be a UUID, such as 0199c0de-0000-7000-8000-000000000000"
        raise InvalidParametersError(detail, errors=[{"name": "job_id", "type": "uuid", "detail": detail}])
    job_id = job_id.lower()
    preferences = CallPreferences.read(request.scope)
    body = await _body(request, services, preferences)
    if body is None:
        return Response(status_code=_NOBODY)
    if services.inline.find(job_id) is not None:  # the store may not have it yet
        raise IdempotencyMismatchError("A synchronous call has this id.", job_id=job_id)
    invocation = services.invocations.read(body)
    caller = caller_in(request.scope)
    call = Call(
        services,
        invocation,
        preferences,
        request.receive,
        request.url.path,
        caller,
        idempotency.of_job(job_id, caller.owns, invocation.sent, preferences.cache),
        job_id,
    )
    return await call.answer() or Response(status_code=_NOBODY)


@router.post(
    "/invoke/batch",
    status_code=202,
    response_model=BatchAccepted,
    responses={202: REPLAYED_HEADERS, **problems(400, 413, 422, 429, 503)},
    openapi_extra={"parameters": [KEY_HEADER], **BATCH_BODY},
    summary="Submit many jobs",
    tags=["invoke"],
)
async def invoke_batch(request: Request, services: ServicesDep, jobs: JobsDep) -> Response:
    """Each item is judged for itself. Where none was accepted, the answer is the first one's problem."""
    preferences = CallPreferences.read(request.scope)
    body = await _body(request, services, preferences)
    if body is None:
        return Response(status_code=_NOBODY)
    caller = caller_in(request.scope)
    judged = await _judged(services, services.invocations.items(body), preferences, caller)
    new = [job for job in judged if isinstance(job, NewJob)]
    async with services.limits.runs(caller, len(new)) as charge:
        with submitting(services.tracing, new) as traced:
            admitted = await services.ledger.submit_many(traced) if traced else []
        charge.unstarted = sum(isinstance(outcome, ProblemError) or outcome.replayed for outcome in admitted)
    admissions = iter(admitted)
    outcomes = [next(admissions) if isinstance(job, NewJob) else job for job in judged]
    instance = request.url.path
    told = await asyncio.gather(*(_told(jobs, *place, instance) for place in enumerate(outcomes)))
    refused = [outcome for outcome in outcomes if isinstance(outcome, ProblemError)]
    _log.info("invoked as a batch", extra={"accepted": len(outcomes) - len(refused), "refused": len(refused)})
    if len(refused) == len(outcomes):
        first = refused[0]
        problem = first.problem(instance=instance)
        return problem_response(problem, retry_after=first.retry_after, extensions={"jobs": told})
    replayed = all(outcome.replayed for outcome in outcomes if isinstance(outcome, Admission))
    return Response(orjson.dumps({"jobs": told}), 202, REPLAYED if replayed else None, "application/json")


@router.post(
    "/jobs/{job_id}/retry",
    status_code=202,
    response_model=Accepted,
    responses={202: REPLAYED_HEADERS, **problems(400, 404, 409, 422, 429, 503)},
    openapi_extra={"parameters": [KEY_HEADER]},
    summary="Run a job's input once more",
)
async def retry_job(request: Request, job_id: str, services: ServicesDep, jobs: JobsDep) -> Response:
    """A new job for the workers, with ``retried_from``. 409 for a job that has not ended, or whose input is gone."""
    if services.drain.begun:
        raise DrainingError()
    caller, key = caller_in(request.scope), idempotency.read_key(request.scope["headers"])
    found = await jobs.input_of(job_id)
    same = None if key is None else idempotency.of_key(key, caller.name, {"retry": found.job_id}, found.cache)
    job = replace(
        found,
        job_id=new_job_id(),
        max_attempts=services.settings.runtime.max_attempts,
        caller=caller.owns or found.caller,
        lane=lane_of(found.labels, caller.name),
        idempotency=same,
        retried_from=found.job_id,
    )
    async with services.limits.runs(caller) as charge:
        with submitting(services.tracing, [job]) as [traced]:
            admission = await services.ledger.submit(traced)
        charge.unstarted = int(admission.replayed)
    _log.info("retried", extra={"job_id": admission.job_id, "retried_from": found.job_id})
    status, position = await _state(jobs, admission)
    headers = answers.location(admission.job_id) | answers.RETRY_AFTER | (REPLAYED if admission.replayed else {})
    body = answers.accepted(admission.job_id, status=status, queue_position=position)
    return Response(body, 202, headers, "application/json")


async def _body(request: Request, services: Services, preferences: CallPreferences) -> bytes | None:
    """The request's body; None when the caller left. Raises PayloadTooLargeError, DrainingError."""
    limit = services.settings.service.max_body
    body = await read_body(request.receive, limit=limit, announced=preferences.content_length)
    if services.drain.begun:
        raise DrainingError()
    return body


async def _judged(
    services: Services, items: list[Any], preferences: CallPreferences, caller: Caller
) -> list[NewJob | ProblemError]:
    """Each item as a job, or why it is none."""
    judged: list[NewJob | ProblemError] = []
    for index, item in enumerate(items):
        if index % _AT_A_STRETCH == _AT_A_STRETCH - 1:
            await asyncio.sleep(0)
        try:
            invocation = services.invocations.read_item(item)
            key, cache = preferences.idempotency_key, preferences.cache
            same = None if key is None else idempotency.of_key(key, caller.name, invocation.sent, cache, index=index)
            job_id = new_job_id()
            judged.append(new_job(services, invocation, job_id=job_id, caller=caller, cache=cache, idempotency=same))
        except ProblemError as error:
            judged.append(error)
    return judged


async def _told(jobs: JobLookup, index: int, outcome: Admission | ProblemError, instance: str) -> dict[str, Any]:
    if isinstance(outcome, ProblemError):
        return {"index": index, "error": outcome.problem(instance=instance).as_dict()}
    status, position = await _state(jobs, outcome)
    accepted = answers.accepted_members(outcome.job_id, status=status, queue_position=position)
    return {"index": index, **accepted} | ({"replayed": True} if outcome.replayed else {})


async def _state(jobs: JobLookup, admission: Admission) -> tuple[JobStatus, int | None]:
    """A job's state, and its place in the queue; a new one's without asking."""
    if not admission.replayed:
        return JobStatus.PENDING, admission.queue_position
    job = await jobs.get(admission.job_id)
    return job.status, job.queue_position
