"""What a trace says of an attempt at a job: the span of a message's consumer, a child of who submitted it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from pipeserve.runtime.ports import Claim
from pipeserve.runtime.step_spans import run_attributes
from pipeserve.runtime.tracing import Attribute, Tracing


class Ending(Protocol):
    """What is known of an attempt once it is over."""

    @property
    def outcome(self) -> str | None:
        """A job's status, or why the attempt has none."""
        ...

    @property
    def error(self) -> str | None:
        """The code of the problem that it ended with."""
        ...


@contextmanager
def attempt_span(tracing: Tracing | None, claim: Claim, pipeline_name: str, ending: Ending) -> Generator[None]:
    """While entered, the attempt's span is current."""
    if tracing is None:
        yield
        return
    attributes = {
        **run_attributes(claim.job_id, claim.attempt, pipeline_name, claim.deployment_id),
        "messaging.system": "pipeserve",
        "messaging.operation.type": "process",
        "messaging.operation.name": "run",
        "messaging.destination.name": pipeline_name,
        "messaging.message.id": claim.job_id,
        "pipeserve.wait_seconds": max(claim.claimed_at - claim.due_at, 0.0),
    }
    span = tracing.start_attempt(f"run {pipeline_name}", claim.trace, claim.job_id, claim.attempt, attributes)
    error: str | None = None
    try:
        yield
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        ended: dict[str, Attribute] = {} if ending.outcome is None else {"pipeserve.status": ending.outcome}
        span.end(ended, error=error or ending.error)
