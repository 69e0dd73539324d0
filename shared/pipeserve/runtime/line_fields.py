"""What each line of a service process's log says of where it was written: deployment, job, attempt, step, trace."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from pipeserve.runtime.tracing import Tracing
from pipeserve.sdk.context import StepContext, current_scope

request_id: ContextVar[str | None] = ContextVar("pipeserve.request_id", default=None)
"""The id of the request that the running code serves, where requests have ids."""
_job: ContextVar[tuple[str, int] | None] = ContextVar("pipeserve.job", default=None)


class ContextFields:
    """For :func:`pipeserve.process_log.configure_logging`. A composition root says what it knows, once it does."""

    def __init__(self) -> None:
        self.deployment_id: str | None = None
        self.tracing: Tracing | None = None

    def __call__(self) -> dict[str, Any]:
        """The fields of a line that is written here and now."""
        fields: dict[str, Any] = {}
        if self.deployment_id is not None:
            fields["deployment_id"] = self.deployment_id
        scope = current_scope.get()
        job = _job.get()
        if isinstance(scope, StepContext):
            if not scope.members:  # a batch is of no single job
                fields |= {"job_id": scope.job_id, "attempt": scope.attempt}
            if scope.step_name is not None:
                fields["step"] = scope.step_name
        elif job is not None:
            fields["job_id"], fields["attempt"] = job
        if (request := request_id.get()) is not None:
            fields["request_id"] = request
        if self.tracing is not None and (ids := self.tracing.ids()) is not None:
            fields["trace_id"], fields["span_id"] = ids
        return fields


def note_job(job_id: str, attempt: int) -> None:
    """What is logged in this context from now on is of this attempt at this job."""
    _job.set((job_id, attempt))
