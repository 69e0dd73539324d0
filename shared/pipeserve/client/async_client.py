"""The async client. ``_protocol``, ``_poll`` and ``_follow`` decide what goes over the wire; here is the I/O."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self

import httpx

from pipeserve.client._follow import EventFollower
from pipeserve.client._poll import JobPoll
from pipeserve.client._protocol import (
    CLOSE_SECONDS,
    CONNECT_SECONDS,
    KEEP_ALIVE_SECONDS,
    Accepted,
    Options,
    Reply,
    Request,
    base_headers,
    cancel_request,
    invoke_request,
    parse_cancel,
    parse_invoke,
    parse_submit,
    result_of,
    submit_request,
    unreachable,
)
from pipeserve.client.errors import UnreachableError
from pipeserve.client.result import Result
from pipeserve.events import Event
from pipeserve.jobs import Job as JobRecord
from pipeserve.jobs import JobStatus


class AsyncClient:
    """Calls the service at ``url``. It belongs to one event loop; an async context manager that closes its connections.

    ::

        async with AsyncClient("http://127.0.0.1:8001") as client:
            print((await client.invoke(text="…")).outputs)
            job = await client.submit(text="…")
            async for event in job.events():
                print(event.seq, event.event_type, event.data)

    Errors are those of :mod:`pipeserve.errors`, as the service answered them, and :class:`ClientError` where it didn't.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._http = _Http(url, api_key)
        self._options = Options()

    def with_options(self, *, timeout: float | None = None, wait: float | None = None) -> AsyncClient:
        """A client that shares this one's connections, with other options; None leaves an option as it is.

        ``timeout``: seconds that a run may take. ``wait``: seconds for which the service holds a synchronous call
        before it goes on as a job (the client follows it either way).
        """
        other = object.__new__(type(self))
        other._http = self._http
        other._options = self._options.but(timeout=timeout, wait=wait)
        return other

    async def invoke(self, parameters: Mapping[str, Any] | None = None, /, **params: Any) -> Result:
        """Run the pipeline and return its outputs. Keys such as ``step.param`` go into ``parameters``.

        A call that outlasts the service's patience goes on as a job; it is followed to its end here. Raises the error
        that the run ended with.
        """
        answer = parse_invoke(await self._http.send(invoke_request({**(parameters or {}), **params}, self._options)))
        return await AsyncJob(self._http, answer.job_id).result() if isinstance(answer, Accepted) else answer

    async def submit(self, parameters: Mapping[str, Any] | None = None, /, **params: Any) -> AsyncJob:
        """Queue the pipeline as a job and return at once."""
        request = submit_request({**(parameters or {}), **params}, self._options)
        return AsyncJob(self._http, parse_submit(await self._http.send(request)).job_id)

    def job(self, job_id: str) -> AsyncJob:
        """A handle for a job submitted elsewhere. Asks nothing: an unknown id shows at the first use."""
        return AsyncJob(self._http, job_id)

    async def close(self) -> None:
        """Close the connections, also those of clients made by :meth:`with_options`."""
        await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class AsyncJob:
    """A submitted job."""

    def __init__(self, http: _Http, job_id: str) -> None:
        self._http = http
        self.job_id = job_id

    def __repr__(self) -> str:
        return f"AsyncJob({self.job_id!r})"

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

    async def result(self, timeout: float | None = None) -> Result:
        """The job's outputs once it has completed. Raises the error that it ended with, or TimeoutError."""
        return result_of(await self.wait(timeout))

    async def cancel(self, reason: str | None = None) -> JobStatus:
        """Ask for the job's end: ``canceling`` until its work stops. Raises AlreadyFinishedError if it has ended."""
        return parse_cancel(await self._http.send(cancel_request(self.job_id, reason)))


async def _read_out(chunks: AsyncIterator[bytes], *, within: float) -> None:
    """Leave no half-read generator behind: the loop would end it and those below it by tasks, in its own good time.

    After the terminal event nothing is left but the connection's end; otherwise ``within`` is 0 and cancels the read.
    """
    with suppress(TimeoutError, httpx.TransportError):
        async with asyncio.timeout(within):
            async for _ in chunks:
                pass


class _Http:
    """Carries requests out over one pool of connections."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url
        self._client = httpx.AsyncClient(
            base_url=url,
            headers=base_headers(api_key),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS),
        )

    async def send(self, request: Request) -> Reply:
        async with self.stream(request) as response:
            return Reply(response.status_code, response.headers, await response.aread())

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncGenerator[httpx.Response]:
        timeout = httpx.Timeout(CONNECT_SECONDS, read=request.read_timeout, pool=None)
        try:
            async with self._client.stream(
                request.method, request.path, content=request.content, headers=request.headers, timeout=timeout
            ) as response:
                yield response
        except httpx.TransportError as error:
            raise unreachable(self._url, error) from error

    async def close(self) -> None:
        await self._client.aclose()
