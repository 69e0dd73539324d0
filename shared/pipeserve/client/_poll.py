"""Waits for a job's end by long polls, through restarts of the service. No I/O: the clients bring the replies."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeserve.client._jobs import job_request, parse_job
from pipeserve.client._protocol import Reply, Request
from pipeserve.client._retries import Retries
from pipeserve.client.errors import ClientError
from pipeserve.errors import ProblemError
from pipeserve.jobs import Job as JobRecord

LONG_POLL_SECONDS = 20.0
"""One long poll; short enough for proxies, which often cut a silent connection at 30 or 60 s."""
EARLY_REPLY_DELAY = 0.25


class JobPoll:
    """The state of one wait. ``timeout`` is in seconds; None waits as long as it takes."""

    def __init__(self, job_id: str, timeout: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._job_id = job_id
        self._timeout = timeout
        self._clock = clock
        self._deadline = None if timeout is None else clock() + timeout
        self._asked = clock()
        self._hold = 0.0
        self._retries = Retries()

    def request(self) -> Request:
        """The next question."""
        self._asked = self._clock()
        left = LONG_POLL_SECONDS if self._deadline is None else self._deadline - self._asked
        self._hold = max(0.0, min(LONG_POLL_SECONDS, left))
        return job_request(self._job_id, wait=self._hold)

    def answered(self, reply: Reply) -> JobRecord | float:
        """The ended job, or the seconds to wait before the next question. Raises TimeoutError, or what stays wrong."""
        try:
            job = parse_job(reply)
        except ProblemError as error:
            return self.failed(error)
        self._retries.progressed()
        if job.status.terminal:
            return job
        self._check(str(job.status))
        # A service that shuts down answers early; that must not turn into a busy loop.
        return 0.0 if self._clock() - self._asked >= self._hold else EARLY_REPLY_DELAY

    def failed(self, error: ProblemError | ClientError) -> float:
        """The seconds to wait after a failure. Raises TimeoutError, or ``error`` if asking again can't help."""
        if not error.retryable:
            raise error
        self._check(f"unknown ({error})")
        return self._retries.failed(error, at_least=error.retry_after)

    def _check(self, status: str) -> None:
        if self._deadline is not None and self._clock() >= self._deadline:
            raise TimeoutError(f"job {self._job_id} has not ended within {self._timeout:g} s; its status is {status}")
