"""What an exception of a pipeline says to the caller, and what it leaves in the log."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator, Sequence
from typing import cast

from pipeserve.errors import InvocationError, Problem, StepFailedError, TimedOutError
from pipeserve.events import clean_text
from pipeserve.runtime.run import RunStopped
from pipeserve.runtime.values.encoding import NotJsonError


def words_of(error: BaseException) -> str:
    """The error's own message, as text that can be sent."""
    try:
        return clean_text(str(error))
    except Exception:  # the author's __str__ may raise anything
        return "(its message can't be shown)"


def traceback_of(error: BaseException) -> str:
    """The whole traceback, for logs."""
    try:
        return clean_text("".join(traceback.format_exception(error)))
    except Exception:  # the author's __repr__ or __str__ may raise anything
        return f"{type(error).__name__} (its traceback can't be shown)"


def cause_of(error: BaseException) -> BaseException:
    """The error that says most: of a group, the first that answers the caller, else the first."""
    leaves = list(_leaves(error))
    answers = [leaf for leaf in leaves if isinstance(leaf, InvocationError)]
    return (answers or leaves or [error])[0]


def causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and all that led to it, each once: causes, contexts and members of groups."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [*_members(found), found.__context__, found.__cause__]


def problem_of(
    error: BaseException, *, job_id: str, step: str | None, pipeline_name: str, expose_tracebacks: bool
) -> Problem:
    """The problem document for an error that ended a step or a pipeline's body.

    An InvocationError answers in its own words. Any other is ``step_failed``: also a problem that the step met
    elsewhere, as a caller of another service; that one's code and job are not this caller's business.
    """
    error = cause_of(error)
    if isinstance(error, InvocationError) or (isinstance(error, (StepFailedError, TimedOutError)) and not error.job_id):
        problem = error.problem(job_id=job_id)
        return problem.model_copy(
            update={"detail": clean_text(problem.detail), "job_id": job_id, "step": problem.step or step}
        )
    where = f"step {step!r}" if step else f"pipeline {pipeline_name!r}"
    if isinstance(error, NotJsonError):
        detail = f"{where} failed: {words_of(error)}"
    else:
        detail = f"{where} failed: {type(error).__name__}: {words_of(error)}"
    if expose_tracebacks:
        detail += "\n" + traceback_of(error)
    return StepFailedError(detail, step=step).problem(job_id=job_id)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    members = _members(error)
    for member in members:
        yield from _leaves(member)
    if not members and not isinstance(error, (RunStopped, asyncio.CancelledError)):
        yield error


def _members(error: BaseException) -> Sequence[BaseException]:
    return cast(BaseExceptionGroup[BaseException], error).exceptions if isinstance(error, BaseExceptionGroup) else ()
