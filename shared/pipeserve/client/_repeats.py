"""Sends one request again where that can do no harm. No I/O: the clients do the sending and the waiting.

What may be repeated depends on what the first try may have done:

- no answer, a gateway's, or 503 because the store did not answer: the service may have taken the call on. Only a call
  that carries an idempotency key, which makes the second one join the first, is sent again.
- any other 429 or 503: nothing was done. Without a key that is the caller's to decide all the same.
- 429 or 503 with a job's id: that is how the job ended, and asking again would be told the same.
"""

from __future__ import annotations

from pipeserve.client._protocol import Reply, Request, error_of
from pipeserve.client._retries import Retries
from pipeserve.client.errors import ClientError, UnreachableError
from pipeserve.errors import ProblemError

PATIENCE = 60.0
"""Seconds that all waits for one call may take together. A service that asks for more of them has its answer raised, so
that the caller can decide."""
_BUSY = (429, 503)
_GATEWAY = (502, 503, 504)


class Repeats:
    """The tries at one request."""

    def __init__(self, request: Request) -> None:
        self._repeatable = request.repeatable
        self._retries = Retries(patience=PATIENCE)

    def answered(self, reply: Reply) -> float | None:
        """The seconds to wait before the next try; None: this reply stands."""
        if not self._repeatable or reply.status not in (*_BUSY, *_GATEWAY):
            return None
        error = error_of(reply)
        if not _may_change(error):
            return None
        try:
            return self._retries.failed(error, at_least=error.retry_after)
        except (ProblemError, ClientError):
            return None

    def failed(self, error: UnreachableError) -> float:
        """The seconds to wait before the next try after no reply. Raises ``error`` where there is none."""
        if not self._repeatable:
            raise error
        return self._retries.failed(error)


def _may_change(error: ProblemError | ClientError) -> bool:
    """Whether the same request could be answered otherwise a little later."""
    if isinstance(error, ProblemError):
        return error.status in _BUSY and error.retryable and error.job_id is None
    return error.status in _GATEWAY
