"""The async client. ``_calls`` and ``_jobs`` decide what goes over the wire; ``_http`` carries it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import httpx

from pipeserve.client._calls import (
    Accepted,
    batch_request,
    invoke_request,
    parse_batch,
    parse_invoke,
    parse_submit,
    submit_request,
)
from pipeserve.client._http import CONNECT_SECONDS, AsyncHttp, Wire
from pipeserve.client._jobs import JobSearch
from pipeserve.client._map import CONCURRENCY, check, in_tasks
from pipeserve.client._options import Options
from pipeserve.client._service import info_request, parse_info
from pipeserve.client.async_job import AsyncJob
from pipeserve.client.errors import ClientError
from pipeserve.client.result import Result
from pipeserve.errors import PipeserveError, ProblemError
from pipeserve.events import Event
from pipeserve.jobs import Job as JobRecord
from pipeserve.jobs import JobStatus

_T = TypeVar("_T")
_LEFT = "its subscriber has left"
_CANCEL_SECONDS = 5.0
"""For which a subscriber who leaves is held up until the service knows."""


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

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        proxy: str | httpx.Proxy | None = None,
        verify: bool | ssl.SSLContext = True,
        headers: Mapping[str, str] | None = None,
        connect_timeout: float = CONNECT_SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """``proxy``, ``verify`` and ``transport`` are httpx's; ``headers`` go with every request.

        ``connect_timeout`` is in seconds. Answers are waited for as long as they may take.
        """
        wire = Wire(proxy=proxy, verify=verify, headers=headers, connect_timeout=connect_timeout)
        self._http = AsyncHttp(url, api_key, wire, transport)
        self._options = Options()

    def with_options(
        self,
        *,
        timeout: float | None = None,
        wait: float | None = None,
        idempotency_key: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
        run_at: datetime | None = None,
        expires_in: float | None = None,
        webhook: Mapping[str, Any] | None = None,
        job_id: str | None = None,
    ) -> AsyncClient:
        """A client that shares this one's connections, with other options; None leaves an option as it is.

        ``timeout``: seconds that a run may take. ``wait``: seconds for which the service holds a synchronous call
        before it goes on as a job (the client follows it either way).

        ``idempotency_key``: however often a call with the same key and parameters arrives, it is one job. So a call
        that got no answer, 429 or 503 is sent again, for up to a minute. Without a key each call is sent once.

        For jobs: ``labels`` to find them by; ``priority``, -10 to 10, higher first; ``run_at``, a time before which
        they are not started; ``expires_in``, seconds by which they must have been started; ``webhook``, where to send
        their events, as ``{"url": …, "events": […]}``; ``job_id``, a UUID of your own for the one that is submitted,
        which is an idempotency key as well.
        """
        other = object.__new__(type(self))
        other._http = self._http
        other._options = self._options.but(
            timeout=timeout,
            wait=wait,
            idempotency_key=idempotency_key,
            labels=labels,
            priority=priority,
            run_at=run_at,
            expires_in=expires_in,
            webhook=webhook,
            job_id=job_id,
        )
        return other

    @overload
    async def invoke(
        self, parameters: Mapping[str, Any] | None = None, /, *, into: None = None, **params: Any
    ) -> Result: ...
    @overload
    async def invoke(
        self, parameters: Mapping[str, Any] | None = None, /, *, into: type[_T], **params: Any
    ) -> Result[_T]: ...
    async def invoke(
        self, parameters: Mapping[str, Any] | None = None, /, *, into: type[Any] | None = None, **params: Any
    ) -> Result[Any]:
        """Run the pipeline and return its outputs, read as the type ``into`` if it is given (:meth:`Result.into`).

        Parameters of other names, such as ``step.param`` or ``into``, go into ``parameters``. A call that outlasts the
        service's patience goes on as a job; it is followed to its end here. Raises the error that the run ended with.
        """
        result = await self._invoke({**(parameters or {}), **params}, self._options)
        return result if into is None else result.into(into)

    async def _invoke(self, parameters: Mapping[str, Any], options: Options) -> Result:
        answer = parse_invoke(await self._http.send(invoke_request(parameters, options)))
        return await AsyncJob(self._http, answer.job_id).result() if isinstance(answer, Accepted) else answer

    @overload
    def map(
        self,
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        concurrency: int = ...,
        into: None = None,
        return_exceptions: Literal[False] = False,
    ) -> AsyncGenerator[Result]: ...
    @overload
    def map(
        self,
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        concurrency: int = ...,
        into: type[_T],
        return_exceptions: Literal[False] = False,
    ) -> AsyncGenerator[Result[_T]]: ...
    @overload
    def map(
        self,
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        concurrency: int = ...,
        into: None = None,
        return_exceptions: bool,
    ) -> AsyncGenerator[Result | PipeserveError]: ...
    @overload
    def map(
        self,
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        concurrency: int = ...,
        into: type[_T],
        return_exceptions: bool,
    ) -> AsyncGenerator[Result[_T] | PipeserveError]: ...
    def map(
        self,
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        concurrency: int = CONCURRENCY,
        into: type[Any] | None = None,
        return_exceptions: bool = False,
    ) -> AsyncGenerator[Result[Any] | PipeserveError]:
        """Call the pipeline for each of ``inputs``, mappings of parameters; the results in the same order.

        At most ``concurrency`` calls are open, and twice as many inputs taken before their results are. The first error
        is raised in its result's place and ends the rest; with ``return_exceptions`` it stands there instead, and the
        others go on. Calls that are open then, or when the generator is closed, are canceled.

        With an idempotency key, each call has it with ``-0``, ``-1``, … added: the same map again runs nothing twice.
        """

        async def one(numbered: tuple[int, Mapping[str, Any]]) -> Result[Any] | PipeserveError:
            index, parameters = numbered
            try:
                result = await self._invoke(parameters, self._options.for_input(index))
                return result if into is None else result.into(into)
            except PipeserveError as error:
                if not return_exceptions:
                    raise
                return error

        return in_tasks(one, _numbered(inputs), check(concurrency))

    @overload
    async def subscribe(
        self,
        parameters: Mapping[str, Any] | None = None,
        /,
        *,
        on_event: Callable[[Event], Awaitable[object] | None],
        into: None = None,
        **params: Any,
    ) -> Result: ...
    @overload
    async def subscribe(
        self,
        parameters: Mapping[str, Any] | None = None,
        /,
        *,
        on_event: Callable[[Event], Awaitable[object] | None],
        into: type[_T],
        **params: Any,
    ) -> Result[_T]: ...
    async def subscribe(
        self,
        parameters: Mapping[str, Any] | None = None,
        /,
        *,
        on_event: Callable[[Event], Awaitable[object] | None],
        into: type[Any] | None = None,
        **params: Any,
    ) -> Result[Any]:
        """Submit a job, hand each of its events to ``on_event``, and return its outputs, as :meth:`invoke` does.

        If ``on_event`` raises, or the call is interrupted, nobody waits for the job any more: it is canceled.
        """
        job = await self.submit(parameters, **params)
        try:
            async with aclosing(job.events()) as events:
                async for event in events:
                    told = on_event(event)
                    if told is not None:
                        await told
        except ClientError:  # the job is out of sight; a cancel would be too
            raise
        except BaseException:
            with suppress(PipeserveError, TimeoutError):
                async with asyncio.timeout(_CANCEL_SECONDS):
                    await job.cancel(_LEFT)
            raise
        return await job.result(into=into) if into is not None else await job.result()

    async def submit(self, parameters: Mapping[str, Any] | None = None, /, **params: Any) -> AsyncJob:
        """Queue the pipeline as a job and return at once. Raises QueueFullError, whose ``retry_after`` is measured."""
        request = submit_request({**(parameters or {}), **params}, self._options)
        return AsyncJob(self._http, parse_submit(await self._http.send(request)).job_id)

    async def submit_many(self, calls: Sequence[Mapping[str, Any]]) -> list[AsyncJob | ProblemError]:
        """Queue a job for each of ``calls``, each a mapping of parameters, in one request.

        Each is judged for itself: in its place stands its job, or the error that it was refused with.
        """
        if not calls:
            return []
        answers = parse_batch(await self._http.send(batch_request(calls, self._options)), count=len(calls))
        return [AsyncJob(self._http, answer.job_id) if isinstance(answer, Accepted) else answer for answer in answers]

    def job(self, job_id: str) -> AsyncJob:
        """A handle for a job submitted elsewhere. Asks nothing: an unknown id shows at the first use."""
        return AsyncJob(self._http, job_id)

    async def jobs(
        self,
        *,
        status: JobStatus | str | None = None,
        code: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[JobRecord]:
        """The records of jobs, newest first, read page by page; all that match, or the newest ``limit``.

        ``status``: only jobs in this state. ``code``: only jobs that ended with an error of this code, such as
        ``worker_lost``. ``labels``: only jobs with all of these.
        """
        search = JobSearch(status=status, code=code, labels=labels, limit=limit)
        while not search.done:
            for job in search.page(await self._http.send(search.request())):
                yield job

    async def info(self) -> dict[str, Any]:
        """What is deployed: ``pipeline`` (name, steps, schemas, …), ``deployment`` and the service's ``version``."""
        return parse_info(await self._http.send(info_request()))

    async def close(self) -> None:
        """Close the connections, also those of clients made by :meth:`with_options`."""
        await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


async def _numbered(
    inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
) -> AsyncGenerator[tuple[int, Mapping[str, Any]]]:
    if isinstance(inputs, AsyncIterable):
        index = 0
        async for each in inputs:
            yield index, each
            index += 1
    else:
        for numbered in enumerate(inputs):
            yield numbered
