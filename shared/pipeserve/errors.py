"""Every error that pipeserve raises, and the problem document that each becomes on the wire.

An error knows what a caller needs to decide: its ``code`` (stable, for programs), its HTTP ``status``, and
``retryable`` (would the same request have a chance later?). Handlers branch on these, never on class names.

::

    PipeserveError
    ├── DefinitionError            a step or pipeline refused at decoration
    ├── TargetError                "module:pipeline" or "file.py:pipeline" can't be loaded
    ├── ConfigurationError         a setting is missing or wrong; the process can't start
    ├── StaleAttemptError          a write by an attempt that no longer owns its job; it changed nothing
    └── ProblemError               has an answer in RFC 9457 words
        ├── BadRequestError             400 bad_request
        ├── UnauthorizedError           401 unauthorized
        ├── ForbiddenError              403 forbidden
        ├── NotFoundError               404 not_found
        ├── AlreadyFinishedError        409 already_finished
        ├── NotRetryableError           409 not_retryable
        ├── JobCanceledError            409 canceled
        ├── ExpiredError                410 expired
        ├── PayloadTooLargeError        413 payload_too_large
        ├── InvalidParametersError      422 invalid_parameters
        ├── IdempotencyMismatchError    422 idempotency_mismatch
        ├── QueueFullError              429 queue_full
        ├── RateLimitedError            429 rate_limited
        ├── StepFailedError             500 step_failed
        ├── WorkerLostError             500 worker_lost
        ├── OverloadedError             503 overloaded
        ├── StoreUnavailableError       503 store_unavailable
        ├── DrainingError               503 draining
        ├── TimedOutError               504 timed_out
        └── InvocationError             what a step raises to answer the caller in its own words
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Problem(BaseModel):
    """An RFC 9457 problem document. The same object stands in responses, ``job.error``, events and webhooks."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    code: str
    retryable: bool = False
    job_id: str | None = None
    step: str | None = None
    errors: list[dict[str, Any]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The document as JSON values, without the members that are not set."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


class PipeserveError(Exception):
    """The base of every error of this package."""


class DefinitionError(PipeserveError, TypeError):
    """A step or pipeline can't be served as it is written. The message names the step and the argument."""


class TargetError(PipeserveError):
    """A target such as ``package.module:pipeline`` can't be loaded. The message says what was looked for, and where."""


class ConfigurationError(PipeserveError):
    """A setting is missing or wrong. The message names the variable and what to do."""


class StaleAttemptError(PipeserveError):
    """A write was refused, because another attempt owns the job by now. Nothing was changed."""

    @classmethod
    def of(cls, job_id: str, attempt: int) -> StaleAttemptError:
        """The error of this attempt."""
        return cls(f"job {job_id}: attempt {attempt} no longer owns it; nothing was written")


class ProblemError(PipeserveError):
    """An error with an answer in RFC 9457 words.

    ``retry_after`` is in seconds and becomes the ``Retry-After`` header; every 429 and 503 has one.
    """

    code: ClassVar[str]
    status: ClassVar[int]
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str | None = None,
        *,
        job_id: str | None = None,
        step: str | None = None,
        errors: Sequence[dict[str, Any]] | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.detail = (type(self).__doc__ or "").strip().splitlines()[0] if detail is None else detail
        super().__init__(self.detail)
        self.job_id = job_id
        self.step = step
        self.errors = list(errors) if errors else None
        if retry_after is None and self.status in (429, 503):
            retry_after = 1.0
        self.retry_after = retry_after

    def problem(self, *, job_id: str | None = None, instance: str | None = None) -> Problem:
        """This error as a problem document. ``job_id`` fills in where the error itself names no job."""
        return Problem(
            type=f"urn:pipeserve:problem:{self.code}",
            title=HTTPStatus(self.status).phrase if self.status in _STATUSES else "Error",
            status=self.status,
            detail=self.detail,
            instance=instance,
            code=self.code,
            retryable=self.retryable,
            job_id=self.job_id or job_id,
            step=self.step,
            errors=self.errors,
        )


_STATUSES = frozenset(int(status) for status in HTTPStatus)


class BadRequestError(ProblemError):
    """The request can't be read."""

    code = "bad_request"
    status = 400


class UnauthorizedError(ProblemError):
    """A key is needed: send it as "Authorization: Bearer KEY" or "X-API-Key: KEY"."""

    code = "unauthorized"
    status = 401


class ForbiddenError(ProblemError):
    """This key may not do that."""

    code = "forbidden"
    status = 403


class NotFoundError(ProblemError):
    """There is no such thing here."""

    code = "not_found"
    status = 404


class AlreadyFinishedError(ProblemError):
    """The job has reached its end, and an end never changes."""

    code = "already_finished"
    status = 409


class NotRetryableError(ProblemError):
    """The job can't be run again: it has not ended yet, or its input was not kept."""

    code = "not_retryable"
    status = 409


class JobCanceledError(ProblemError):
    """The job was canceled."""

    code = "canceled"
    status = 409


class ExpiredError(ProblemError):
    """The job waited past its expiry and was never started."""

    code = "expired"
    status = 410


class PayloadTooLargeError(ProblemError):
    """The request's body is larger than this service accepts."""

    code = "payload_too_large"
    status = 413


class InvalidParametersError(ProblemError):
    """A parameter is unknown, missing or of the wrong type; ``errors`` names each."""

    code = "invalid_parameters"
    status = 422


class IdempotencyMismatchError(ProblemError):
    """This Idempotency-Key was used with another body."""

    code = "idempotency_mismatch"
    status = 422


class QueueFullError(ProblemError):
    """The queue is full; try again later."""

    code = "queue_full"
    status = 429
    retryable = True


class RateLimitedError(ProblemError):
    """Too many requests; try again later."""

    code = "rate_limited"
    status = 429
    retryable = True


class StepFailedError(ProblemError):
    """A step of the pipeline raised an error."""

    code = "step_failed"
    status = 500


class WorkerLostError(ProblemError):
    """The process that ran the job died, and no attempt is left."""

    code = "worker_lost"
    status = 500
    retryable = True


class OverloadedError(ProblemError):
    """The service is at its limit of concurrent runs; try again later."""

    code = "overloaded"
    status = 503
    retryable = True


class StoreUnavailableError(ProblemError):
    """The job store can't be reached; synchronous calls go on, jobs do not."""

    code = "store_unavailable"
    status = 503
    retryable = True


class DrainingError(ProblemError):
    """This replica is shutting down; another one will answer."""

    code = "draining"
    status = 503
    retryable = True


class TimedOutError(ProblemError):
    """The run took longer than its timeout."""

    code = "timed_out"
    status = 504
    retryable = True


class InvocationError(ProblemError):
    """What a step raises to answer the caller in its own words.

    ``status`` must be a client or server error (400 to 599); ``code`` is yours, in snake_case::

        raise InvocationError(status=404, code="document_not_found", detail=f"no document {name!r}")
    """

    code = "invocation_error"
    status = 400

    def __init__(self, *, status: int, code: str, detail: str, retryable: bool = False) -> None:
        given: dict[str, tuple[Any, type]] = {"status": (status, int), "code": (code, str), "detail": (detail, str)}
        for name, (value, kind) in given.items():
            if not isinstance(value, kind):  # now, where the author can see it
                raise TypeError(f"InvocationError: {name} must be {kind.__name__}, not {value!r}")
        if not 400 <= status <= 599:
            raise ValueError(f"InvocationError: status must be between 400 and 599, not {status}")
        # Instance attributes shadow the class's: each raise has its own status and code.
        vars(self).update(status=status, code=code, retryable=retryable)
        super().__init__(detail)

    def __reduce__(self) -> tuple[Any, ...]:
        """It crosses process borders with all that it says."""
        return (_invocation_error, (self.status, self.code, self.detail, self.retryable))


def _invocation_error(status: int, code: str, detail: str, retryable: bool) -> InvocationError:
    return InvocationError(status=status, code=code, detail=detail, retryable=retryable)


def error_from_problem(problem: Problem, *, retry_after: float | None = None) -> ProblemError:
    """The error that ``problem`` stands for: what a client raises for a reply, or a waiter for a failed job."""
    kind = _BY_CODE.get(problem.code)
    if kind is None:
        error: ProblemError = InvocationError(
            status=problem.status if 400 <= problem.status <= 599 else 500,
            code=problem.code,
            detail=problem.detail,
            retryable=problem.retryable,
        )
        error.errors = problem.errors
    else:
        error = kind(problem.detail, errors=problem.errors, retry_after=retry_after)
    error.job_id = problem.job_id
    error.step = problem.step
    return error


_BY_CODE: dict[str, type[ProblemError]] = {
    kind.code: kind for kind in ProblemError.__subclasses__() if kind is not InvocationError
}
