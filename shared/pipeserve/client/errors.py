"""What can go wrong between a caller and the service. What the service itself answers is in :mod:`pipeserve.errors`.

::

    PipeserveError
    └── ClientError
        ├── UnreachableError         no answer: refused, timed out, connection lost
        ├── UnexpectedReplyError     an answer that no pipeserve service gives
        └── UnexpectedOutputsError   outputs that don't fit the type that the caller asked for

They carry what a service's own errors do: ``code``, ``status``, ``retryable``, ``job_id`` and ``retry_after``.
"""

from __future__ import annotations

from typing import ClassVar

from pipeserve.errors import PipeserveError


class ClientError(PipeserveError):
    """The base of errors that arise on the caller's side of the wire."""

    code: ClassVar[str]
    retryable: ClassVar[bool]

    def __init__(
        self, detail: str, *, job_id: str | None = None, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.job_id = job_id
        self.status = status
        """The HTTP status, if there was a reply."""
        self.retry_after = retry_after
        """Seconds, if there was a reply that said so."""


class UnreachableError(ClientError):
    """The service did not answer. A call that was already sent may have run all the same; with an idempotency key it
    can be sent again without harm."""

    code = "unreachable"
    retryable = True


class UnexpectedReplyError(ClientError):
    """The reply is none that a pipeserve service gives: is the URL right, is there a proxy in between?"""

    code = "unexpected_reply"
    retryable = False


class UnexpectedOutputsError(ClientError):
    """The job has completed, and its outputs don't fit the type that the caller asked for."""

    code = "unexpected_outputs"
    retryable = False
