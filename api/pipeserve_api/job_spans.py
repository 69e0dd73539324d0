"""What a trace says of jobs on their way to the queue; the worker's span is a child of the one made here."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from pipeserve.errors import ProblemError
from pipeserve.runtime.ports import NewJob
from pipeserve.runtime.tracing import Attribute, Tracing


@contextmanager
def submitting(tracing: Tracing | None, jobs: Sequence[NewJob]) -> Generator[Sequence[NewJob]]:
    """While entered, ``jobs`` are put into the queue: as they are given here, they know of which trace they are."""
    if tracing is None or not jobs:
        yield jobs
        return
    first = jobs[0]
    attributes: dict[str, Attribute] = {
        "messaging.system": "pipeserve",
        "messaging.operation.type": "send",
        "messaging.operation.name": "submit",
        "messaging.destination.name": first.pipeline_name,
        "pipeserve.deployment_id": first.deployment_id,
    }
    if len(jobs) == 1:
        attributes |= {"messaging.message.id": first.job_id, "pipeserve.job_id": first.job_id}
    else:
        attributes["messaging.batch.message_count"] = len(jobs)
    span = tracing.start(f"submit {first.pipeline_name}", "producer", attributes)
    error: str | None = None
    try:
        carrier = span.carrier or None
        yield [replace(job, trace=carrier) for job in jobs]
    except ProblemError as refused:
        error = refused.code
        raise
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        span.end(error=error)
