"""A job's handle of the async client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any, TypeVar, overload

import httpx

from pipeserve.client._files import (
    artifact_request,
    parse_bytes,
    parse_visualizations,
    visualization_request,
    visualizations_request,
)
from pipeserve.client._follow import EventFollower
from pipeserve.client._http import AsyncHttp
from pipeserve.client._jobs import (
    CLOSE_SECONDS,
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


class AsyncJob:
    """A submitted job."""

    def __init__(self, http: AsyncHttp, job_id: str) -> None:
        self._http = http
        self.job_id = job_id

    def __repr__(self) -> str:
        return f"AsyncJob({self.job_id!r})"

    async def record(self) -> JobRecord:
        """The job as it is now."""
        return parse_job(await self._http.send(job_request(self.job_id)))

    async def events(self, after: int = 0) -> AsyncGenerator[Event]:
        """Every event that follows number ``after``, as it happens, up to the terminal one.

        A lost connection is made again, and goes on where it broke: no event is left out and none comes twice.
        """
        follower = EventFollower(self.job_id, after)
        while not follower.done:
            lost: UnreachableError | None = None
            refused: Reply | None = None
            try:
                async with self._http.stream(follower.request()) as response:
                    if follower.accepts(response.status_code, response.headers.get("content-type", "")):
                        chunks = response.aiter_bytes()
                        try:
                            async for chunk in chunks:
                                for event in follower.feed(chunk):
                                    yield event
                                if follower.done:
                                    return
                        finally:
                            await _read_out(chunks, within=CLOSE_SECONDS if follower.done else 0)
                    else:
                        refused = Reply(response.status_code, response.headers, await response.aread())
            except UnreachableError as error:
                lost = error
            await asyncio.sleep(follower.lost(lost) if refused is None else follower.refused(refused))

    async def logs(self) -> AsyncGenerator[LogLine]:
        """What the job's steps have printed and logged so far. To follow it: :meth:`events`, those of type ``log``."""
        reader = LogReader(self.job_id)
        while not reader.done:
            for line in reader.page(await self._http.send(reader.request())):
                yield line

    async def explain(self) -> dict[str, Any]:
        """Where the job's time went: ``summary``, sentences for people, and figures."""
        return parse_explain(await self._http.send(explain_request(self.job_id)))

    async def visualizations(self) -> list[Visualization]:
        """What the job's steps have shown so far, in the order in which they drew it."""
        return parse_visualizations(await self._http.send(visualizations_request(self.job_id)))

    async def visualization(self, index: int) -> bytes:
        """One of :meth:`visualizations`, by its ``index``."""
        return parse_bytes(await self._http.send(visualization_request(self.job_id, index)))

    async def artifact(self, name: str) -> bytes:
        """An output that is too large for the job's record, whose ``$artifact`` has this ``name``."""
        return parse_bytes(await self._http.send(artifact_request(self.job_id, name)))

    async def wait(self, timeout: float | None = None) -> JobRecord:
        """The job's record once it has ended, however it ended. Raises TimeoutError after ``timeout`` seconds."""
        poll = JobPoll(self.job_id, timeout)
        while True:
            try:
                answer = poll.answered(await self._http.send(poll.request()))
            except UnreachableError as error:
                answer = poll.failed(error)
            if isinstance(answer, JobRecord):
                return answer
            await asyncio.sleep(answer)

    @overload
    async def result(self, timeout: float | None = None, *, into: None = None) -> Result: ...
    @overload
    async def result(self, timeout: float | None = None, *, into: type[_T]) -> Result[_T]: ...
    async def result(self, timeout: float | None = None, *, into: type[Any] | None = None) -> Result[Any]:
        """The job's outputs once it has completed; see :meth:`Result.into` for ``into``.

        Raises the error that it ended with, or TimeoutError.
        """
        found = result_of(await self.wait(timeout))
        return found if into is None else found.into(into)

    async def cancel(self, reason: str | None = None) -> JobStatus:
        """Ask for the job's end: ``canceling`` until its work stops. Raises AlreadyFinishedError if it has ended."""
        return parse_cancel(await self._http.send(cancel_request(self.job_id, reason)))

    async def retry(self, *, idempotency_key: str | None = None) -> AsyncJob:
        """Run an ended job's input again, as a new job. Raises NotRetryableError if it has not ended.

        Each call makes another job; with the same ``idempotency_key`` it is the same one.
        """
        request = retry_request(self.job_id, idempotency_key)
        return AsyncJob(self._http, parse_retry(await self._http.send(request)))


async def _read_out(chunks: AsyncIterator[bytes], *, within: float) -> None:
    """Leave no half-read generator behind: the loop would end it and those below it by tasks, in its own good time.

    After the terminal event nothing is left but the connection's end; otherwise ``within`` is 0 and cancels the read.
    """
    with suppress(TimeoutError, httpx.TransportError):
        async with asyncio.timeout(within):
            async for _ in chunks:
                pass
