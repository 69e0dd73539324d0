"""A job's handle of the blocking client."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar, overload

from pipeserve.client._files import (
    artifact_request,
    parse_bytes,
    parse_visualizations,
    visualization_request,
    visualizations_request,
)
from pipeserve.client._follow import EventFollower
from pipeserve.client._http import Http
from pipeserve.client._jobs import (
    LogReader,
    cancel_request,
    explain_request,
    job_request,
    parse_cancel,
    parse_explain,
    parse_job,
    parse_retry,
    result_of,
    retry_request,
)
from pipeserve.client._poll import JobPoll
from pipeserve.client._protocol import Reply
from pipeserve.client.errors import UnreachableError
from pipeserve.client.log_line import LogLine
from pipeserve.client.result import Result
from pipeserve.client.visualization import Visualization
from pipeserve.events import Event
from pipeserve.jobs import Job as JobRecord
from pipeserve.jobs import JobStatus

_T = TypeVar("_T")


class Job:
    """A submitted job."""

    def __init__(self, http: Http, job_id: str) -> None:
        self._http = http
        self.job_id = job_id

    def __repr__(self) -> str:
        return f"Job({self.job_id!r})"

    def record(self) -> JobRecord:
        """The job as it is now."""
        return parse_job(self._http.send(job_request(self.job_id)))

    def events(self, after: int = 0) -> Generator[Event]:
        """Every event that follows number ``after``, as it happens, up to the terminal one.

        A lost connection is made again, and goes on where it broke: no event is left out and none comes twice.
        """
        follower = EventFollower(self.job_id, after)
        while not follower.done:
            lost: UnreachableError | None = None
            refused: Reply | None = None
            try:
                with self._http.stream(follower.request()) as response:
                    if follower.accepts(response.status_code, response.headers.get("content-type", "")):
                        for chunk in response.iter_bytes():
                            yield from follower.feed(chunk)
                            if follower.done:
                                return
                    else:
                        refused = Reply(response.status_code, response.headers, response.read())
            except UnreachableError as error:
                lost = error
            time.sleep(follower.lost(lost) if refused is None else follower.refused(refused))

    def logs(self) -> Generator[LogLine]:
        """What the job's steps have printed and logged so far. To follow it: :meth:`events`, those of type ``log``."""
        reader = LogReader(self.job_id)
        while not reader.done:
            yield from reader.page(self._http.send(reader.request()))

    def explain(self) -> dict[str, Any]:
        """Where the job's time went: ``summary``, sentences for people, and figures."""
        return parse_explain(self._http.send(explain_request(self.job_id)))

    def visualizations(self) -> list[Visualization]:
        """What the job's steps have shown so far, in the order in which they drew it."""
        return parse_visualizations(self._http.send(visualizations_request(self.job_id)))

    def visualization(self, index: int) -> bytes:
        """One of :meth:`visualizations`, by its ``index``."""
        return parse_bytes(self._http.send(visualization_request(self.job_id, index)))

    def artifact(self, name: str) -> bytes:
        """An output that is too large for the job's record, whose ``$artifact`` has this ``name``."""
        return parse_bytes(self._http.send(artifact_request(self.job_id, name)))

    def wait(self, timeout: float | None = None) -> JobRecord:
        """The job's record once it has ended, however it ended. Raises TimeoutError after ``timeout`` seconds."""
        poll = JobPoll(self.job_id, timeout)
        while True:
            try:
                answer = poll.answered(self._http.send(poll.request()))
            except UnreachableError as error:
                answer = poll.failed(error)
            if isinstance(answer, JobRecord):
                return answer
            time.sleep(answer)

    @overload
    def result(self, timeout: float | None = None, *, into: None = None) -> Result: ...
    @overload
    def result(self, timeout: float | None = None, *, into: type[_T]) -> Result[_T]: ...
    def result(self, timeout: float | None = None, *, into: type[Any] | None = None) -> Result[Any]:
        """The job's outputs once it has completed; see :meth:`Result.into` for ``into``.

        Raises the error that it ended with, or TimeoutError.
        """
        found = result_of(self.wait(timeout))
        return found if into is None else found.into(into)

    def cancel(self, reason: str | None = None) -> JobStatus:
        """Ask for the job's end: ``canceling`` until its work stops. Raises AlreadyFinishedError if it has ended."""
        return parse_cancel(self._http.send(cancel_request(self.job_id, reason)))

    def retry(self, *, idempotency_key: str | None = None) -> Job:
        """Run an ended job's input again, as a new job. Raises NotRetryableError if it has not ended.

        Each call makes another job; with the same ``idempotency_key`` it is the same one.
        """
        request = retry_request(self.job_id, idempotency_key)
        return Job(self._http, parse_retry(self._http.send(request)))
