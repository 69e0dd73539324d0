"""One valid call, from its request to its answer.

However it comes to run (:mod:`pipeserve_api.launch`), it is a job: a synchronous caller who can't wait longer gets a
202 for the same job. A call whose job is there already is answered with that one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive

from pipeserve.errors import DrainingError, StoreUnavailableError
from pipeserve.jobs import JobStatus
from pipeserve.runtime.inline_run import InlineRun
from pipeserve.runtime.ports import IdempotencyKey
from pipeserve.runtime.run import RunResult
from pipeserve.runtime.tasks import end_tasks
from pipeserve_api import answers
from pipeserve_api.attend import Interruption, LeaveWatch, attend
from pipeserve_api.cache_status import cache_headers, calls_of_job, calls_of_run
from pipeserve_api.callers import EVERYBODY, Caller
from pipeserve_api.idempotency import REPLAYED
from pipeserve_api.launch import Launched, Order, launch, leave_run
from pipeserve_api.lookup import JobLog, JobLookup
from pipeserve_api.preferences import CallPreferences
from pipeserve_api.problems import error_response, problem_of_run, problem_response
from pipeserve_api.schemas import Invocation
from pipeserve_api.services import Services
from pipeserve_api.sse import EventStream, JobFrames
from pipeserve_api.whole_outputs import with_whole_outputs

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """One valid request. :meth:`answer` returns None when nobody is left to be answered."""

    services: Services
    invocation: Invocation
    preferences: CallPreferences
    receive: Receive
    instance: str
    """The request's path."""
    caller: Caller = EVERYBODY
    idempotency: IdempotencyKey | None = None
    job_id: str | None = None
    """The id that the caller chose for the job, which a worker then runs."""

    async def answer(self) -> Response | None:
        """Run the call, or see that it is run, and answer it as it asks. Raises ProblemError before anything runs."""
        preferences = self.preferences
        order = Order(
            self.invocation,
            queued=preferences.queued,
            cache=preferences.cache,
            caller=self.caller,
            idempotency=self.idempotency,
            job_id=self.job_id,
            follow=preferences.events,
        )
        launched = await launch(self.services, order)
        headers = self._headers | REPLAYED if launched.replayed else self._headers
        if preferences.events:
            return self._stream(launched, headers)
        if order.asked_async:
            return await self._answer_of_job(launched, preferences.wait, headers)
        if launched.replayed:
            return await self._replayed(launched, headers)
        if launched.run is not None:
            return await self._result_of(launched.run)
        return await self._answer_of_job(launched, self._wait, headers)

    # --- in this process

    async def _result_of(self, run: InlineRun) -> Response | None:
        watch = LeaveWatch(self.receive, partial(self._leave, run))
        try:
            result = await self._result_within(run, self._wait)
            if result is None and (response := await self._keep(run)) is not None:
                return response
            # Either it ended just now, or the store is away: then nothing can be promised, and the call goes on.
            result = result or await run.wait()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not self.services.drain.begun:
                raise
            # The server closes its last connections, and a thread that heeds no checkpoint still holds the run.
            task.uncancel()
            error = DrainingError("The service is shutting down, and the run did not end in time; call again.")
            return error_response(error, instance=self.instance, headers=self._headers, job_id=run.job_id)
        finally:
            left = await watch.end()
        return None if left else self._run_answer(run, result, self._headers)

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
            await end_tasks([keeping, ending])
        if ending in done or run.result is not None:
            return None
        try:
            keeping.result()
        except StoreUnavailableError:
            _log.warning("a long call goes on, the store is away", extra={"job_id": run.job_id})
            return None
        return self._accepted(run.job_id, status=JobStatus.RUNNING, queue_position=None, headers=self._headers)

    def _leave(self, run: InlineRun) -> None:
        if self.idempotency is None:  # with a key the caller comes back
            leave_run(self.services, run)

    def _run_answer(self, run: InlineRun, result: RunResult, headers: dict[str, str]) -> Response:
        cached_calls = calls_of_run(result.steps)
        headers = headers | cache_headers(cached_calls) if cached_calls else headers
        if result.status is not JobStatus.COMPLETED:
            problem = problem_of_run(result.status, result.error, job_id=run.job_id, instance=self.instance)
            return problem_response(problem, headers=headers)
        services = self.services
        body = answers.success(
            job_id=run.job_id,
            run_name=run.job.run_name,
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

    @property
    def _jobs(self) -> JobLookup:
        return self.services.directory.seen_by(self.caller)

    # --- on the workers

    async def _answer_of_job(self, launched: Launched, wait: float | None, headers: dict[str, str]) -> Response | None:
        """Of a job that this process does not run. ``wait``: seconds for which its caller waits for its end."""
        job_id = launched.job_id
        if wait:
            whole = not (self.preferences.queued or self.job_id is not None)
            return await self._end_of(job_id, launched.log, wait, headers, whole=whole, on_leave=launched.leave)
        status, position = JobStatus.PENDING, launched.queue_position
        if launched.replayed:
            known = await self._jobs.get(job_id)
            status, position = known.status, known.queue_position
        return self._accepted(job_id, status=status, queue_position=position, headers=headers)

    async def _end_of(
        self,
        job_id: str,
        log: JobLog,
        wait: float,
        headers: dict[str, str],
        *,
        whole: bool,
        on_leave: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> Response | None:
        """The answer of a job that this process does not run, once it has ended; its 202 after ``wait`` seconds.

        ``whole``: with its large outputs in full.
        """
        services = self.services
        ended = await attend(log.ended(after=0), seconds=wait, receive=self.receive, drain=services.drain)
        if ended is Interruption.CALLER_LEFT:
            if on_leave is not None:
                await on_leave()
            return None
        job = await self._jobs.get(job_id)
        if not job.status.terminal:
            return self._accepted(job_id, status=job.status, queue_position=job.queue_position, headers=headers)
        if whole:
            job = await with_whole_outputs(job, services.artifacts, services.runtime.materializers)
        cached_calls = calls_of_job(job)
        headers = headers | cache_headers(cached_calls)
        if job.status is not JobStatus.COMPLETED:
            problem = problem_of_run(job.status, job.error, job_id=job_id, instance=self.instance)
            return problem_response(problem, headers=headers)
        body = answers.completed_job(
            job,
            applied=self.invocation.parameters.applied,
            cached_calls=cached_calls,
            deployment=services.deployment,
            definition=services.definition,
        )
        return Response(body, headers=headers, media_type="application/json")

    # --- a job that was there already

    async def _replayed(self, launched: Launched, headers: dict[str, str]) -> Response | None:
        """The answer of a synchronous call whose job is there; its run: it is, or of late was, one of this process."""
        services, run, job_id = self.services, launched.run, launched.job_id
        if run is None:
            return await self._end_of(job_id, launched.log, self._wait, headers, whole=True)
        ended = await attend(run.wait(), seconds=self._wait, receive=self.receive, drain=services.drain)
        if ended is Interruption.CALLER_LEFT:
            return None
        if run.result is not None:
            return self._run_answer(run, run.result, headers)
        return self._accepted(job_id, status=JobStatus.RUNNING, queue_position=None, headers=headers)

    # --- all

    @property
    def _headers(self) -> dict[str, str]:
        return self.preferences.headers

    @property
    def _wait(self) -> float:
        """Seconds after which a synchronous caller rather has a 202."""
        wait = self.preferences.wait
        return self.services.settings.service.sync_wait if wait is None else wait

    def _stream(self, launched: Launched, headers: dict[str, str]) -> Response:
        log = launched.log
        return EventStream(
            JobFrames(lambda: log.follow(after=0)),
            drain=self.services.drain,
            on_leave=launched.leave,
            headers=headers | answers.location(launched.job_id),
        )

    def _accepted(
        self, job_id: str, *, status: JobStatus, queue_position: int | None, headers: dict[str, str]
    ) -> Response:
        body = answers.accepted(job_id, status=status, queue_position=queue_position)
        return Response(body, 202, headers | answers.location(job_id) | answers.RETRY_AFTER, "application/json")
