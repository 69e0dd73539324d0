"""The blocking client. ``_calls`` and ``_jobs`` decide what goes over the wire; ``_http`` carries it."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
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
from pipeserve.client._http import CONNECT_SECONDS, Http, Wire
from pipeserve.client._jobs import JobSearch
from pipeserve.client._map import CONCURRENCY, check, in_threads
from pipeserve.client._options import Options
from pipeserve.client._service import info_request, parse_info
from pipeserve.client.errors import ClientError
from pipeserve.client.job import Job
from pipeserve.client.result import Result
from pipeserve.errors import PipeserveError, ProblemError
from pipeserve.events import Event
from pipeserve.jobs import Job as JobRecord
from pipeserve.jobs import JobStatus

_T = TypeVar("_T")
_LEFT = "its subscriber has left"


class Client:
    """Calls the service at ``url``. Safe to share between threads; a context manager that closes its connections.

    ::

        with Client("http://127.0.0.1:8001") as client:
            print(client.invoke(text="…").outputs)
            for event in client.submit(text="…").events():
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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """``proxy``, ``verify`` and ``transport`` are httpx's; ``headers`` go with every request.

        ``connect_timeout`` is in seconds. Answers are waited for as long as they may take.
        """
        wire = Wire(proxy=proxy, verify=verify, headers=headers, connect_timeout=connect_timeout)
        self._http = Http(url, api_key, wire, transport)
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
    ) -> Client:
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
    def invoke(self, parameters: Mapping[str, Any] | None = None, /, *, into: None = None, **params: Any) -> Result: ...
    @overload
    def invoke(
        self, parameters: Mapping[str, Any] | None = None, /, *, into: type[_T], **params: Any
    ) -> Result[_T]: ...
    def invoke(
        self, parameters: Mapping[str, Any] | None = None, /, *, into: type[Any] | None = None, **params: Any
    ) -> Result[Any]:
        """Run the pipeline and return its outputs, read as the type ``into`` if it is given (:meth:`Result.into`).

        Parameters of other names, such as ``step.param`` or ``into``, go into ``parameters``. A call that outlasts the
        service's patience goes on as a job; it is followed to its end here. Raises the error that the run ended with.
        """
        result = self._invoke({**(parameters or {}), **params}, self._options)
        return result if into is None else result.into(into)

    def _invoke(self, parameters: Mapping[str, Any], options: Options) -> Result:
        answer = parse_invoke(self._http.send(invoke_request(parameters, options)))
        return Job(self._http, answer.job_id).result() if isinstance(answer, Accepted) else answer

    @overload
    def map(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        concurrency: int = ...,
        into: None = None,
        return_exceptions: Literal[False] = False,
    ) -> Generator[Result]: ...
    @overload
    def map(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        concurrency: int = ...,
        into: type[_T],
        return_exceptions: Literal[False] = False,
    ) -> Generator[Result[_T]]: ...
    @overload
    def map(
        self, inputs: Iterable[Mapping[str, Any]], *, concurrency: int = ..., into: None = None, return_exceptions: bool
    ) -> Generator[Result | PipeserveError]: ...
    @overload
    def map(
        self, inputs: Iterable[Mapping[str, Any]], *, concurrency: int = ..., into: type[_T], return_exceptions: bool
    ) -> Generator[Result[_T] | PipeserveError]: ...
    def map(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        concurrency: int = CONCURRENCY,
        into: type[Any] | None = None,
        return_exceptions: bool = False,
    ) -> Generator[Result[Any] | PipeserveError]:
        """Call the pipeline for each of ``inputs``, mappings of parameters; the results in the same order.

        At most ``concurrency`` calls are open, and twice as many inputs taken before their results are. The first error
        is raised in its result's place and ends the rest; with ``return_exceptions`` it stands there instead, and the
        others go on. Calls that are open then, or when the generator is closed, are waited for.

        With an idempotency key, each call has it with ``-0``, ``-1``, … added: the same map again runs nothing twice.
        """

        def one(numbered: tuple[int, Mapping[str, Any]]) -> Result[Any] | PipeserveError:
            index, parameters = numbered
            try:
                result = self._invoke(parameters, self._options.for_input(index))
                return result if into is None else result.into(into)
            except PipeserveError as error:
                if not return_exceptions:
                    raise
                return error

        return in_threads(one, enumerate(inputs), check(concurrency))

    @overload
    def subscribe(
        self,
        parameters: Mapping[str, Any] | None = None,
        /,
        *,
        on_event: Callable[[Event], object],
        into: None = None,
        **params: Any,
    ) -> Result: ...
    @overload
    def subscribe(
        self,
        parameters: Mapping[str, Any] | None = None,
        /,
        *,
        on_event: Callable[[Event], object],
        into: type[_T],
        **params: Any,
    ) -> Result[_T]: ...
    def subscribe(
        self,
        parameters: Mapping[str, Any] | None = None,
        /,
        *,
        on_event: Callable[[Event], object],
        into: type[Any] | None = None,
        **params: Any,
    ) -> Result[Any]:
        """Submit a job, hand each of its events to ``on_event``, and return its outputs, as :meth:`invoke` does.

        If ``on_event`` raises, or the call is interrupted, nobody waits for the job any more: it is canceled.
        """
        job = self.submit(parameters, **params)
        try:
            with closing(job.events()) as events:
                for event in events:
                    on_event(event)
        except ClientError:  # the job is out of sight; a cancel would be too
            raise
        except BaseException:
            with suppress(PipeserveError):
                job.cancel(_LEFT)
            raise
        return job.result(into=into) if into is not None else job.result()

    def submit(self, parameters: Mapping[str, Any] | None = None, /, **params: Any) -> Job:
        """Queue the pipeline as a job and return at once. Raises QueueFullError, whose ``retry_after`` is measured."""
        request = submit_request({**(parameters or {}), **params}, self._options)
        return Job(self._http, parse_submit(self._http.send(request)).job_id)

    def submit_many(self, calls: Sequence[Mapping[str, Any]]) -> list[Job | ProblemError]:
        """Queue a job for each of ``calls``, each a mapping of parameters, in one request.

        Each is judged for itself: in its place stands its job, or the error that it was refused with.
        """
        if not calls:
            return []
        answers = parse_batch(self._http.send(batch_request(calls, self._options)), count=len(calls))
        return [Job(self._http, answer.job_id) if isinstance(answer, Accepted) else answer for answer in answers]

    def job(self, job_id: str) -> Job:
        """A handle for a job submitted elsewhere. Asks nothing: an unknown id shows at the first use."""
        return Job(self._http, job_id)

    def jobs(
        self,
        *,
        status: JobStatus | str | None = None,
        code: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> Generator[JobRecord]:
        """The records of jobs, newest first, read page by page; all that match, or the newest ``limit``.

        ``status``: only jobs in this state. ``code``: only jobs that ended with an error of this code, such as
        ``worker_lost``. ``labels``: only jobs with all of these.
        """
        search = JobSearch(status=status, code=code, labels=labels, limit=limit)
        while not search.done:
            yield from search.page(self._http.send(search.request()))

    def info(self) -> dict[str, Any]:
        """What is deployed: ``pipeline`` (name, steps, schemas, …), ``deployment`` and the service's ``version``."""
        return parse_info(self._http.send(info_request()))

    def close(self) -> None:
        """Close the connections, also those of clients made by :meth:`with_options`."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
