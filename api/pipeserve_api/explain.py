"""Where a job's time went, in plain words and in figures: ``GET /jobs/{id}/explain``.

Pure: everything is read from the job's record and the pipeline's definition. Receipts of the step cache hold names of
arguments and never their values, so nothing here shows one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pipeserve.jobs import CacheReceipt, Job, JobStatus, StepReport, WebhookReport
from pipeserve.runtime.recording.run_view import STEPS_SHOWN
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve_api.cache_status import cache_figures, calls_of_job
from pipeserve_api.submission import TENANT
from pipeserve_api.timing import Timing, start_of
from pipeserve_api.words import (
    cache_words,
    duration_words,
    eta_words,
    listed,
    number,
    place_words,
    plural,
    priority_words,
    step_words,
    webhook_words,
)

_PARALLEL = 1.05  # times more work than time: less is the noise of a clock's readings
_NOTABLE_SECONDS, _NOTABLE_SHARE = 0.1, 0.25  # of a run, outside its steps
_TOLD = 20  # steps with a sentence of their own; the list of steps has all
_DRAINED = "drained"  # why an attempt ended whose worker stopped; any other reason is a loss


def explain(
    job: Job, definition: PipelineDefinition, *, now: datetime, ends: Sequence[str] | None = None
) -> dict[str, Any]:
    """``job`` explained, as the members of an :class:`~pipeserve_api.models.Explanation`.

    ``now`` is what a job that has not ended is measured against. ``ends``: why its earlier attempts ended
    (``worker_died``, ``lease_expired``, ``drained``); None: that is not known.
    """
    timing = Timing(job, now)
    attempts = _attempts(job, ends)
    return {
        "job_id": job.job_id,
        "status": job.status.value,
        "summary": list(_summary(job, definition, timing, attempts)),
        "waiting": _waiting(job),
        "eta": None if job.eta is None else job.eta.model_dump(),
        "timing": timing.as_dict(),
        "steps": [_step(step, timing) for step in job.steps],
        "cache": {**cache_figures(calls_of_job(job)), "saved": timing.saved},
        "attempts": attempts,
        "retried_from": job.retried_from,
        "webhook": None if job.webhook is None else _webhook(job.webhook),
    }


def _step(step: StepReport, timing: Timing) -> dict[str, Any]:
    start, duration = start_of(step), timing.duration_of(step)
    return {
        "name": step.name,
        "status": step.status,
        "started_after": None if start is None or timing.began is None else max(start - timing.began, 0.0),
        "duration": duration,
        "share": min(duration / timing.running, 1.0) if timing.running else None,
        "calls": step.calls,
        "cache": None if step.cache is None else _cache(step.cache, ended=step.status == "completed"),
        "batch": step.batch,
        "resumed": step.resumed,
        "words": step_words(step),
    }


def _cache(receipt: CacheReceipt, *, ended: bool) -> dict[str, str]:
    return {"status": receipt.status, "words": cache_words(receipt, ended=ended)}


def earlier_attempts(job: Job) -> int:
    """How many attempts at the job are over and were not its last."""
    return job.attempt if job.status is JobStatus.PENDING else max(job.attempt - 1, 0)


def _attempts(job: Job, ends: Sequence[str] | None) -> dict[str, Any]:
    earlier = earlier_attempts(job)
    known = None if ends is None else list(ends[:earlier])  # the last attempt's own end, if it was lost too, is no news
    drained = None if known is None else known.count(_DRAINED)
    return {
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "earlier": earlier,
        "lost": None if known is None or drained is None else len(known) - drained,
        "handed_back": drained,
        "resumed_steps": sum(step.resumed for step in job.steps),
        "fenced_writes": job.fenced_writes,
    }


def _waiting(job: Job) -> dict[str, Any] | None:
    if job.status is not JobStatus.PENDING:
        return None
    return {
        "queue_position": job.queue_position,
        "tenant": job.labels.get(TENANT),
        "priority": job.priority,
        "run_at": job.run_at,
        "expires_at": job.expires_at,
    }


def _webhook(webhook: WebhookReport) -> dict[str, Any]:
    last = webhook.deliveries[-1].model_dump() if webhook.deliveries else None
    return {"status": webhook.status, "last": last, "words": webhook_words(webhook)}


# ---- sentences


def _summary(job: Job, definition: PipelineDefinition, timing: Timing, attempts: Mapping[str, Any]) -> Iterable[str]:
    yield _course(job, timing, attempts)
    if job.status is JobStatus.PENDING:
        yield from _terms(job, timing)
    if end := _end(job):
        yield end
    if job.eta is not None:
        yield eta_words(job.eta)
    if job.fenced_writes:
        was = "was" if job.fenced_writes == 1 else "were"
        writes = f"{job.fenced_writes} late write{plural(job.fenced_writes)}"
        yield f"{writes} of an attempt that had lost the job {was} refused."
    if job.retried_from is not None:
        yield f"It has the input of job {job.retried_from}, to try that again."
    if job.webhook is not None:
        yield f"Webhook: {webhook_words(job.webhook)}."
    capture = definition.capture
    if job.started_at is not None and not job.steps and (capture.memory_only or not capture.metadata):
        option = "memory_only=True" if capture.memory_only else "metadata=False"
        yield f"Nothing was kept of its steps: the pipeline has Capture({option})."
    yield from _steps_summary(job, definition, timing)
    told = [step for step in job.steps if step.resumed or step.calls > 1 or step.cache is not None]
    for step in told[:_TOLD]:
        yield f"{step.name}: {step_words(step)}."
    if len(told) > _TOLD:
        yield f"The list of steps has {len(told) - _TOLD} more with something to tell."


def _course(job: Job, timing: Timing, attempts: Mapping[str, Any]) -> str:
    if job.status is JobStatus.PENDING:
        again = f" It was started before: {_earlier(attempts)}." if attempts["earlier"] else ""
        if timing.due_in > 0.0:
            return f"It is not to start for another {duration_words(timing.due_in)}.{again}"
        place = place_words(job.queue_position, job.labels.get(TENANT))
        return f"It has waited {duration_words(timing.total - timing.scheduled)} for a worker, and {place}.{again}"
    if job.started_at is None:
        return f"It waited {duration_words(timing.queued)} in the queue and never ran."
    waited = f"waited {duration_words(timing.queued)} in the queue, then " if timing.queued else ""
    verb = "ran" if job.status.terminal or waited else "has run"
    took = "" if timing.running is None else f" for {duration_words(timing.running)}"
    so_far = "" if job.status.terminal else " so far"
    which = ""
    if job.attempt > 1:
        after = "" if timing.earlier is None else f", which began {duration_words(timing.earlier)} after the first"
        which = f" in attempt {job.attempt}{after}; {_earlier(attempts)}"
    return f"It {waited}{verb}{took}{so_far}{which}."


def _terms(job: Job, timing: Timing) -> Iterable[str]:
    """The terms on which a job waits."""
    if job.priority:
        yield priority_words(job.priority)
    if timing.expires_in:
        yield f"It expires if it has not begun in {duration_words(timing.expires_in)}."


def _earlier(attempts: Mapping[str, Any]) -> str:
    """What became of earlier attempts."""
    lost, handed_back = attempts["lost"] or 0, attempts["handed_back"] or 0
    ends = {
        "lost": lost,
        "handed back by a worker that stopped": handed_back,
        "not ended": attempts["earlier"] - lost - handed_back,
    }
    return listed([_happened(found, what) for what, found in ends.items() if found > 0])


def _happened(count: int, what: str) -> str:
    who = "an earlier attempt was" if count == 1 else f"{number(count)} earlier attempts were"
    return f"{who} {what}"


def _end(job: Job) -> str | None:
    detail = job.error.detail.rstrip(".") if job.error is not None and job.error.detail else None
    match job.status:
        case JobStatus.CANCELING:
            return "It was asked to stop, and ends as soon as its work has stopped."
        case JobStatus.CANCELED:
            by = f" by {job.canceled_by}" if job.canceled_by else ""
            return f"It was canceled{by}" + (f": {job.cancel_reason}." if job.cancel_reason else ".")
        case JobStatus.FAILED:
            return f"It failed: {detail}." if detail else "It failed."
        case JobStatus.TIMED_OUT:
            return f"It was stopped by a timeout: {detail}." if detail else "It was stopped by a timeout."
        case JobStatus.EXPIRED:
            return "It expired before it could start."
        case _:
            return None


def _steps_summary(job: Job, definition: PipelineDefinition, timing: Timing) -> Iterable[str]:
    steps = job.steps
    if running := [step.name for step in steps if step.status == "running"]:
        yield f"Now running: {listed(running)}."
    if len(steps) > 1 and timing.running:
        slowest = max(steps, key=timing.duration_of)
        seconds = timing.duration_of(slowest)
        share = min(seconds / timing.running, 1.0)
        yield f"The slowest step was {slowest.name}: {duration_words(seconds)}, {share:.0%} of the run."
    if timing.steps_elapsed and timing.steps_total > _PARALLEL * timing.steps_elapsed:
        work, elapsed = duration_words(timing.steps_total), duration_words(timing.steps_elapsed)
        yield f"Steps ran in parallel: {work} of work in {elapsed}."
        path = _critical_path(job, definition)
        if len(path) > 1:
            yield f"These followed on each other and decided how long it took: {', '.join(path)}."
    outside = timing.overhead or 0.0
    if timing.running and outside > max(_NOTABLE_SECONDS, _NOTABLE_SHARE * timing.running):
        yield f"{duration_words(outside)} of the run passed outside its steps."
    if timing.saved:
        yield f"The step cache saved {duration_words(timing.saved)} of work."
    if len(steps) >= STEPS_SHOWN:
        yield f"Its record lists the newest {STEPS_SHOWN} steps only."
    elif steps and job.status is not JobStatus.COMPLETED:
        started = {step.name for step in steps}
        if missing := [node.name for node in definition.nodes if node.name not in started]:
            yield f"Not started{'' if job.status.terminal else ' yet'}: {listed(missing)}."


def _critical_path(job: Job, definition: PipelineDefinition) -> list[str]:
    """In a static pipeline: the step that ended last, and before each step the one that it waited for longest."""
    ends = {
        step.name: start + step.duration
        for step in job.steps
        if step.duration is not None and (start := start_of(step)) is not None
    }
    upstream = {node.name: [name for name in node.upstream if name in ends] for node in definition.nodes}
    if not upstream or not ends:
        return []
    path = [max(ends, key=ends.__getitem__)]
    while before := upstream.get(path[-1]):
        path.append(max(before, key=ends.__getitem__))
    return path[::-1]
