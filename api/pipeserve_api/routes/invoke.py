"""``POST /invoke``: the one route that must be fast, so a plain ASGI endpoint instead of a FastAPI route.

A call is *inline* (runs in this process), or *queued* (a worker runs it) when the caller asks for that or the service
is set so. Either way it is a job: a synchronous caller who can't wait longer gets a 202 for the same job.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import orjson
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeserve.errors import (
    DrainingError,
    InvalidParametersError,
    PayloadTooLargeError,
    ProblemError,
    StoreUnavailableError,
)
from pipeserve.jobs import JobStatus, new_job_id
from pipeserve.runtime.inline import InlineRun
from pipeserve.runtime.ports import NewJob
from pipeserve.runtime.run import RunResult
from pipeserve_api import answers
from pipeserve_api.attend import Interruption, attend, caller_left, cancel_all
from pipeserve_api.cache_status import cache_headers, calls_of_job, calls_of_run
from pipeserve_api.lookup import StoredLog
from pipeserve_api.preferences import CallPreferences
from pipeserve_api.problems import error_response, problem_of_run, problem_response
from pipeserve_api.schemas import Invocation
from pipeserve_api.services import Services
from pipeserve_api.sse import EventStream
from pipeserve_api.whole_outputs import with_whole_outputs

PATH = "/invoke"
LEAVE_WATCH_DELAY = 0.02
"""Seconds before a caller's connection is watched: most runs are over by then and never pay for it."""
CALLER_LEFT = "the caller disconnected"

_log = logging.getLogger(__name__)


class InvokeEndpoint:
    """The ASGI endpoint."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        services: Services = scope["state"]["services"]
        headers = {"vary": "Prefer"}
        try:
            preferences = CallPreferences.read(scope)
            headers = preferences.headers
            body = await read_body(
                receive, limit=services.settings.service.max_body, announced=preferences.content_length
            )
            if body is None:
                return
            if services.drain.begun:
                raise DrainingError()
            call = _Call(services, services.invocations.read(body), preferences, headers, receive)
            response = await call.answer()
        except ProblemError as error:
            response = error_response(error, instance=PATH, headers=headers)
        if response is not None:
            await response(scope, receive, send)


class InvokeFirst:
    """Takes ``POST /invoke`` out before FastAPI's routing, which costs about a tenth of a short call.

    The route stays in the router too: it answers other methods, and stands in the list of routes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._endpoint = InvokeEndpoint()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST":
            await self._endpoint(scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def read_body(receive: Receive, *, limit: int, announced: int | None) -> bytes | None:
    """The request's body; None when the caller left meanwhile.

    Raises PayloadTooLargeError as soon as the body is known to be larger than ``limit`` bytes.
    """
    if announced is not None and announced > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunk if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"The body may have {limit} bytes (PIPESERVE_MAX_BODY).")


@dataclass(frozen=True, slots=True)
class _Call:
    """One valid request. :meth:`answer` returns None when nobody is left to be answered."""

    services: Services
    invocation: Invocation
    preferences: CallPreferences
    headers: dict[str, str]
    receive: Receive

    async def answer(self) -> Response | None:
        asked_async = self.preferences.queued
        queued = asked_async or self.services.settings.service.sync_execution == "queued"
        if queued and self.invocation.taps:
            detail = "taps belong to one synchronous call that runs in this process; a queued job keeps none"
            raise InvalidParametersError(detail, errors=[{"name": "taps", "type": "not_available", "detail": detail}])
        return await (self._queued(asked_async=asked_async) if queued else self._inline())

    # --- in this process

    async def _inline(self) -> Response | None:
        services, invocation = self.services, self.invocation
        services.runtime.check_taps(invocation.taps)
        run_name = self._run_name()
        run = services.inline.start(
            invocation.parameters,
            raw_parameters=invocation.raw_parameters,
            run_name=run_name,
            timeout=invocation.timeout,
            labels=invocation.labels,
            taps=invocation.taps,
            follow=self.preferences.events,
            cache=self.preferences.cache,
        )
        self._log_call(run.job_id)
        if self.preferences.events:
            return EventStream(
                lambda: run.log.follow(after=0),
                drain=services.drain,
                on_leave=partial(self._left_stream, run),
                headers=self.headers | _location(run.job_id),
            )
        wait = services.settings.service.sync_wait if self.preferences.wait is None else self.preferences.wait
        watch = _LeaveWatch(self.receive, lambda: self._leave(run))
        try:
            result = await self._result_within(run, wait)
            if result is None and (response := await self._keep(run)) is not None:
                return response
            # Either it ended just now, or the store is away: then nothing can be promised, and the call goes on.
            result = result or await run.wait()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not services.drain.begun:
                raise
            # The server closes its last connections, and a thread that heeds no checkpoint still holds the run.
            task.uncancel()
            error = DrainingError("The service is shutting down, and the run did not end in time; call again.")
            return error_response(error, instance=PATH, headers=self.headers, job_id=run.job_id)
        finally:
            left = await watch.end()
        return None if left else self._run_answer(run, run_name, result)

    async def _result_within(self, run: InlineRun, seconds: float) -> RunResult | None:
        try:
            async with asyncio.timeout(seconds):
                return await run.wait()
        except TimeoutError:
            return run.result

    async def _keep(self, run: InlineRun) -> Response | None:
        """The 202 of a run that goes on without its caller; None when it has ended or can't be kept."""
        keeping = asyncio.ensure_future(run.keep())
        ending = asyncio.ensure_future(run.wait())  # a store that hangs must not hold up the answer of a run that ended
        try:
            done, _ = await asyncio.wait([keeping, ending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_all([keeping, ending])
        if ending in done or run.result is not None:
            return None
        try:
            keeping.result()
        except StoreUnavailableError:
            _log.warning("a long call goes on, the store is away", extra={"job_id": run.job_id})
            return None
        return self._accepted(run.job_id, status=JobStatus.RUNNING, queue_position=None)

    def _leave(self, run: InlineRun) -> None:
        if run.result is None:
            self.services.inline.cancel(run.job_id, reason=CALLER_LEFT, by="caller")

    async def _left_stream(self, run: InlineRun) -> None:
        self._leave(run)

    def _run_answer(self, run: InlineRun, run_name: str, result: RunResult) -> Response:
        cached_calls = calls_of_run(result.steps)
        headers = self.headers | cache_headers(cached_calls) if cached_calls else self.headers
        if result.status is not JobStatus.COMPLETED:
            problem = problem_of_run(result.status, result.error, job_id=run.job_id, instance=PATH)
            return problem_response(problem, headers=headers)
        services = self.services
        body = answers.success(
            job_id=run.job_id,
            run_name=run_name,
            outputs=orjson.Fragment(result.outputs_json or b"{}"),
            taps=orjson.Fragment(result.taps_json or b"{}"),
            execution_time=result.execution_time,
            applied=result.applied,
            steps=[answers.step_of_run(step) for step in result.steps] if services.definition.capture.metadata else [],
            cached_calls=cached_calls,
            deployment=services.deployment,
            definition=services.definition,
        )
        return Response(body, headers=headers, media_type="application/json")

    # --- on the workers

    async def _queued(self, *, asked_async: bool) -> Response | None:
        services, preferences = self.services, self.preferences
        job_id = new_job_id()
        position = await services.ledger.submit(self._new_job(job_id))
        self._log_call(job_id)
        log = StoredLog(services.log, job_id)
        if preferences.events:
            return EventStream(
                lambda: log.follow(after=0),
                drain=services.drain,
                on_leave=None if asked_async else partial(self._leave_queued, job_id),
                headers=self.headers | _location(job_id),
            )
        wait = preferences.wait
        if not asked_async and wait is None:
            wait = services.settings.service.sync_wait
        if not wait:
            return self._accepted(job_id, status=JobStatus.PENDING, queue_position=position)
        ended = await attend(log.ended(after=0), seconds=wait, receive=self.receive, drain=services.drain)
        if ended is Interruption.CALLER_LEFT:
            if not asked_async:
                await self._leave_queued(job_id)
            return None
        job = await services.jobs.get(job_id)
        if not job.status.terminal:
            return self._accepted(job_id, status=job.status, queue_position=job.queue_position)
        if not asked_async:
            job = await with_whole_outputs(job, services.artifacts, services.runtime.materializers)
        cached_calls = calls_of_job(job)
        headers = self.headers | cache_headers(cached_calls)
        if job.status is not JobStatus.COMPLETED:
            problem = problem_of_run(job.status, job.error, job_id=job_id, instance=PATH)
            return problem_response(problem, headers=headers)
        body = answers.completed_job(
            job,
            applied=self.invocation.parameters.applied,
            cached_calls=cached_calls,
            deployment=services.deployment,
            definition=services.definition,
        )
        return Response(body, headers=headers, media_type="application/json")

    async def _leave_queued(self, job_id: str) -> None:
        try:
            await self.services.ledger.cancel(job_id, reason=CALLER_LEFT, by="caller")
        except StoreUnavailableError:  # nobody is left to be told
            _log.warning("a caller left, and its job could not be canceled", extra={"job_id": job_id})

    def _new_job(self, job_id: str) -> NewJob:
        services, invocation = self.services, self.invocation
        capture = services.definition.capture
        return NewJob(
            job_id=job_id,
            deployment_id=services.deployment.id,
            pipeline_name=services.definition.name,
            run_name=self._run_name(),
            parameters=invocation.raw_parameters,
            labels=invocation.labels,
            timeout=invocation.timeout,
            total_steps=services.definition.total_steps,
            max_attempts=services.settings.runtime.max_attempts,
            keep_parameters=capture.metadata and not capture.memory_only,
            shown_parameters=services.runtime.shown_parameters(invocation.raw_parameters, invocation.parameters),
            keep_events=not capture.memory_only,
            cache=self.preferences.cache,
        )

    # --- both

    def _accepted(self, job_id: str, *, status: JobStatus, queue_position: int | None) -> Response:
        body = answers.accepted(job_id, status=status, queue_position=queue_position)
        headers = self.headers | _location(job_id) | answers.RETRY_AFTER
        return Response(body, 202, headers, "application/json")

    def _run_name(self) -> str:
        if self.invocation.run_name is not None:
            return self.invocation.run_name
        now = datetime.fromtimestamp(time.time(), UTC)
        return f"{self.services.definition.name}-{now:%Y%m%d-%H%M%S}-{now.microsecond:06d}"

    def _log_call(self, job_id: str) -> None:
        """Names only: values may be secret."""
        names = ",".join(self.invocation.parameters.applied)
        _log.info("invoked", extra={"job_id": job_id, "parameters_applied": names})


def _location(job_id: str) -> dict[str, str]:
    return {"location": f"/jobs/{job_id}"}


class _LeaveWatch:
    """Calls ``on_leave`` once the caller has left, from a short while after its making until :meth:`end`."""

    def __init__(self, receive: Receive, on_leave: Callable[[], None]) -> None:
        self._receive = receive
        self._on_leave = on_leave
        self._left = False
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(LEAVE_WATCH_DELAY, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        await caller_left(self._receive)
        self._left = True
        self._on_leave()

    async def end(self) -> bool:
        """Stop watching. Returns whether the caller has left."""
        self._timer.cancel()
        if self._task is not None:
            await cancel_all([self._task])
        return self._left
