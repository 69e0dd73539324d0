"""How one valid invocation comes to run, whoever asked for it and over whatever transport.

It is *inline* (runs in this process), or *queued* (a worker runs it) when its caller asks for that or the service is
set so. Either way it is a job. One with an idempotency key may find that its job is there already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeserve.errors import StoreUnavailableError
from pipeserve.jobs import new_job_id
from pipeserve.runtime.inline import RunOptions
from pipeserve.runtime.inline_run import InlineRun
from pipeserve.runtime.ports import CacheUse, IdempotencyKey
from pipeserve_api.callers import EVERYBODY, Caller
from pipeserve_api.job_spans import submitting
from pipeserve_api.lookup import JobLog, LocalLog, StoredLog
from pipeserve_api.schemas import Invocation
from pipeserve_api.services import Services
from pipeserve_api.submission import new_job, refuse_taps, refuse_terms_of_queued_jobs, run_name_of, webhook_of

CALLER_LEFT = "the caller disconnected"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """An invocation, and what its caller says outside of it."""

    invocation: Invocation
    queued: bool
    """Asked for as a job of the workers."""
    cache: CacheUse = "use"
    caller: Caller = EVERYBODY
    idempotency: IdempotencyKey | None = None
    job_id: str | None = None
    """The id that the caller chose for the job, which a worker then runs."""
    follow: bool = True
    """Whether somebody reads the log while it runs."""

    @property
    def asked_async(self) -> bool:
        """Whether the caller waits for no result."""
        return self.queued or self.job_id is not None


@dataclass(frozen=True, slots=True)
class Launched:
    """A job that runs, waits, or was there already."""

    services: Services
    job_id: str
    run: InlineRun | None = None
    """The job, where it is one of this process."""
    replayed: bool = False
    """It was there already."""
    queue_position: int | None = None
    leave: Callable[[], Coroutine[Any, Any, None]] | None = None
    """Ends it, because its caller left; harmless once it has ended. None: it outlives its caller."""

    @property
    def log(self) -> JobLog:
        """Its log. To look at it makes a run of this process write one."""
        if self.run is not None:
            return LocalLog(self.run.log)
        return StoredLog(self.services.log, self.job_id)


async def launch(services: Services, order: Order) -> Launched:
    """Run it, or see that it is run. Raises ProblemError: then nothing was started."""
    if not order.asked_async:
        refuse_terms_of_queued_jobs(order.invocation)
    queued = order.asked_async or services.settings.service.sync_execution == "queued"
    if queued:
        refuse_taps(order.invocation)
    async with services.limits.runs(order.caller) as charge:
        launched = await (_queue if queued else _begin)(services, order)
        charge.unstarted = int(launched.replayed)
    if services.tracing is not None:
        services.tracing.note({"pipeserve.job_id": launched.job_id})
    names = ",".join(order.invocation.parameters.applied)  # names only: values may be secret
    said = "invoked again with the same key" if launched.replayed else "invoked"
    _log.info(said, extra={"job_id": launched.job_id, "parameters_applied": names})
    return launched


def leave_run(services: Services, run: InlineRun) -> None:
    """Cancel a run of this process whose caller has left, unless it has ended."""
    if run.result is None:
        services.inline.cancel(run.job_id, reason=CALLER_LEFT, by="caller")


async def _begin(services: Services, order: Order) -> Launched:
    """In this process."""
    invocation = order.invocation
    services.runtime.check_taps(invocation.taps)
    options = RunOptions(
        run_name=run_name_of(services, invocation),
        timeout=invocation.timeout,
        labels=invocation.labels,
        taps=invocation.taps,
        cache=order.cache,
        caller=order.caller.owns,
        priority=invocation.priority,
    )
    webhook, raw = webhook_of(services, invocation), invocation.raw_parameters
    if order.idempotency is None and webhook is None:
        run = services.inline.start(invocation.parameters, raw_parameters=raw, follow=order.follow, **options)
    else:
        admission, run = await services.inline.open(
            invocation.parameters, raw_parameters=raw, idempotency=order.idempotency, webhook=webhook, **options
        )
        if admission.replayed or run is None:
            return Launched(services, admission.job_id, run, replayed=True)
    leave = partial(_leave_inline, services, run) if order.idempotency is None else None
    return Launched(services, run.job_id, run, leave=leave)


async def _queue(services: Services, order: Order) -> Launched:
    """On the workers."""
    job = new_job(
        services,
        order.invocation,
        job_id=order.job_id or new_job_id(),
        caller=order.caller,
        cache=order.cache,
        idempotency=order.idempotency,
    )
    with submitting(services.tracing, [job]) as [traced]:
        admission = await services.ledger.submit(traced)
    job_id = admission.job_id
    if admission.replayed:
        return Launched(services, job_id, services.inline.find(job_id), replayed=True)
    stays = order.asked_async or order.idempotency is not None
    leave = None if stays else partial(_leave_queued, services, job_id)
    return Launched(services, job_id, queue_position=admission.queue_position, leave=leave)


async def _leave_inline(services: Services, run: InlineRun) -> None:
    leave_run(services, run)


async def _leave_queued(services: Services, job_id: str) -> None:
    try:
        await services.ledger.cancel(job_id, reason=CALLER_LEFT, by="caller")
    except StoreUnavailableError:  # nobody is left to be told
        _log.warning("a caller left, and its job could not be canceled", extra={"job_id": job_id})
