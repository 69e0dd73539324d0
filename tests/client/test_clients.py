"""Both clients against a service of canned replies. Each test runs with the blocking and with the async one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any, Protocol

import pytest
from tests.client.conftest import Canned, CannedService, canned, job, problem, sse, stream

from pipeserve.client import AsyncClient, Client, Result, UnexpectedReplyError, UnreachableError
from pipeserve.errors import (
    AlreadyFinishedError,
    DrainingError,
    InvalidParametersError,
    InvocationError,
    JobCanceledError,
    NotFoundError,
    StepFailedError,
)
from pipeserve.events import Event

COMPLETED = {
    "success": True,
    "job_id": "j",
    "run_id": "j",
    "status": "completed",
    "outputs": {"output": 42},
    "execution_time": 0.5,
    "metadata": {"pipeline_name": "p", "parameters_applied": ["x"]},
    "error": None,
}
ACCEPTED = {"job_id": "j", "run_id": "j", "status": "pending", "links": {}, "queue_position": 0}


class Caller(Protocol):
    """One face for both clients, so that one suite tests both."""

    async def invoke(self, parameters: dict[str, Any] | None = None, /, **params: Any) -> Result: ...
    async def submit(self, **params: Any) -> str: ...
    async def events(self, job_id: str, after: int = 0) -> list[Event]: ...
    async def wait(self, job_id: str, timeout: float | None = None) -> str: ...
    async def result(self, job_id: str) -> Result: ...
    async def cancel(self, job_id: str, reason: str | None = None) -> str: ...
    def with_options(self, *, timeout: float | None = None, wait: float | None = None) -> Caller: ...


class BlockingCaller:
    def __init__(self, client: Client) -> None:
        self.client = client

    async def invoke(self, parameters: dict[str, Any] | None = None, /, **params: Any) -> Result:
        return await asyncio.to_thread(self.client.invoke, parameters, **params)

    async def submit(self, **params: Any) -> str:
        return (await asyncio.to_thread(self.client.submit, **params)).job_id

    async def events(self, job_id: str, after: int = 0) -> list[Event]:
        return await asyncio.to_thread(lambda: list(self.client.job(job_id).events(after)))

    async def wait(self, job_id: str, timeout: float | None = None) -> str:
        return (await asyncio.to_thread(self.client.job(job_id).wait, timeout)).status

    async def result(self, job_id: str) -> Result:
        return await asyncio.to_thread(self.client.job(job_id).result)

    async def cancel(self, job_id: str, reason: str | None = None) -> str:
        return await asyncio.to_thread(self.client.job(job_id).cancel, reason)

    def with_options(self, *, timeout: float | None = None, wait: float | None = None) -> Caller:
        return BlockingCaller(self.client.with_options(timeout=timeout, wait=wait))


class AsyncCaller:
    def __init__(self, client: AsyncClient) -> None:
        self.client = client

    async def invoke(self, parameters: dict[str, Any] | None = None, /, **params: Any) -> Result:
        return await self.client.invoke(parameters, **params)

    async def submit(self, **params: Any) -> str:
        return (await self.client.submit(**params)).job_id

    async def events(self, job_id: str, after: int = 0) -> list[Event]:
        return [event async for event in self.client.job(job_id).events(after)]

    async def wait(self, job_id: str, timeout: float | None = None) -> str:
        return (await self.client.job(job_id).wait(timeout)).status

    async def result(self, job_id: str) -> Result:
        return await self.client.job(job_id).result()

    async def cancel(self, job_id: str, reason: str | None = None) -> str:
        return await self.client.job(job_id).cancel(reason)

    def with_options(self, *, timeout: float | None = None, wait: float | None = None) -> Caller:
        return AsyncCaller(self.client.with_options(timeout=timeout, wait=wait))


@pytest.fixture(params=["blocking", "async"])
async def caller(request: pytest.FixtureRequest, service: CannedService) -> AsyncIterator[Caller]:
    if request.param == "blocking":
        with Client(service.url, api_key="secret") as client:
            yield BlockingCaller(client)
    else:
        async with AsyncClient(service.url + "/", api_key="secret") as client:
            yield AsyncCaller(client)


async def test_invoke_sends_parameters_and_key_and_returns_the_outputs(service: CannedService, caller: Caller) -> None:
    service.answer("POST /invoke", canned(COMPLETED))
    result = await caller.invoke({"embed.model": "small"}, text="héllo")
    assert result == Result("j", {"output": 42}, COMPLETED["metadata"], 0.5)
    [request] = service.received
    assert request.json == {"parameters": {"embed.model": "small", "text": "héllo"}}
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["content-type"] == "application/json"
    assert "prefer" not in request.headers


async def test_options_become_the_bodys_timeout_and_the_prefer_header(service: CannedService, caller: Caller) -> None:
    service.answer("POST /invoke", canned(COMPLETED))
    await caller.with_options(timeout=9).with_options(wait=2.5).invoke()
    [request] = service.received
    assert request.json == {"parameters": {}, "timeout": 9}
    assert request.headers["prefer"] == "wait=2.5"


async def test_a_call_that_became_a_job_is_followed_to_its_result(service: CannedService, caller: Caller) -> None:
    service.answer("POST /invoke", canned(ACCEPTED, 202))
    service.answer(
        "GET /jobs/j", canned(job("running")), canned(job("completed", outputs={"output": 7}, execution_time=3.0))
    )
    result = await caller.invoke()
    assert (result.job_id, result.outputs, result.execution_time) == ("j", {"output": 7}, 3.0)
    assert result.metadata["pipeline_name"] == "p"


async def test_a_call_that_became_a_job_and_failed_raises_the_jobs_error(
    service: CannedService, caller: Caller
) -> None:
    service.answer("POST /invoke", canned(ACCEPTED, 202))
    error = {"type": "t", "title": "t", "status": 500, "detail": "boom", "code": "step_failed", "step": "embed"}
    service.answer("GET /jobs/j", canned(job("failed", error=error)))
    with pytest.raises(StepFailedError, match="boom") as caught:
        await caller.invoke()
    assert (caught.value.step, caught.value.job_id) == ("embed", "j")


async def test_a_canceled_job_has_no_result(service: CannedService, caller: Caller) -> None:
    service.answer("GET /jobs/j", canned(job("canceled")))
    with pytest.raises(JobCanceledError) as caught:
        await caller.result("j")
    assert caught.value.job_id == "j"


async def test_submit_returns_a_handle_for_the_job(service: CannedService, caller: Caller) -> None:
    service.answer("POST /invoke", canned(ACCEPTED, 202))
    assert await caller.submit(text="x") == "j"
    assert service.received[0].query == "mode=async"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (problem(422, "invalid_parameters", errors=[{"name": "text"}]), InvalidParametersError),
        (problem(503, "draining", retryable=True, retry_after="4"), DrainingError),
        (problem(404, "document_not_found"), InvocationError),
    ],
    ids=["invalid parameters", "draining", "the step's own words"],
)
async def test_a_problem_becomes_its_typed_error(
    service: CannedService, caller: Caller, reply: Canned, error: type[Exception]
) -> None:
    service.answer("POST /invoke", reply)
    with pytest.raises(error, match="why") as caught:
        await caller.invoke()
    assert vars(caught.value)["detail"] == "why"
    if isinstance(caught.value, InvalidParametersError):
        assert caught.value.errors == [{"name": "text"}]
    if isinstance(caught.value, DrainingError):
        assert (caught.value.retryable, caught.value.retry_after) == (True, 4.0)
    if isinstance(caught.value, InvocationError):
        assert (caught.value.status, caught.value.code) == (404, "document_not_found")


@pytest.mark.parametrize(
    "reply",
    [
        Canned(200, [b"<html>proxy</html>"], "text/html"),
        Canned(502, [b"Bad Gateway"], "text/plain"),
        Canned(500, [b"{}"], "application/problem+json"),
        canned([1, 2]),
        canned({"success": True}),
    ],
    ids=["html", "gateway", "empty problem", "array", "other object"],
)
async def test_a_reply_of_something_else_says_so(service: CannedService, caller: Caller, reply: Canned) -> None:
    service.answer("POST /invoke", reply)
    with pytest.raises(UnexpectedReplyError, match=f"unexpected reply, HTTP {reply.status}"):
        await caller.invoke()


async def test_a_service_that_is_not_there_is_named(caller: Caller) -> None:
    del caller
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with Client(url) as client, pytest.raises(UnreachableError, match=url) as caught:
        await asyncio.to_thread(client.invoke)
    assert (caught.value.code, caught.value.status, caught.value.retryable) == ("unreachable", None, True)
    async with AsyncClient(url) as client:
        with pytest.raises(UnreachableError, match=url):
            await client.invoke()


async def test_events_arrive_whole_however_the_bytes_are_cut(service: CannedService, caller: Caller) -> None:
    text = b"retry: 10\n\n: ping\n\n" + sse(1, 2, 3, last="pipeline_completed")
    service.answer("GET /stream/j", stream(*(text[at : at + 7] for at in range(0, len(text), 7))))
    events = await caller.events("j")
    assert [event.seq for event in events] == [1, 2, 3]
    assert events[-1].event_type.terminal


async def test_a_stream_that_breaks_is_resumed_where_it_broke(service: CannedService, caller: Caller) -> None:
    half = sse(3)[:25]
    service.answer(
        "GET /stream/j",
        stream(b"retry: 10\n\n" + sse(1, 2), half, breaks=True),
        problem(503, "draining", retryable=True, retry_after="0"),
        stream(sse(3)),  # ends in good order, as a service that shuts down does
        stream(sse(4, 5, last="pipeline_completed")),
    )
    assert [event.seq for event in await caller.events("j")] == [1, 2, 3, 4, 5]
    assert [request.headers.get("last-event-id") for request in service.received] == [None, "2", "2", "3"]


async def test_a_hole_in_the_stream_is_asked_for_again(service: CannedService, caller: Caller) -> None:
    service.answer("GET /stream/j", stream(sse(1, 3)), stream(sse(2, 3, last="pipeline_completed")))
    assert [event.seq for event in await caller.events("j")] == [1, 2, 3]
    assert service.received[1].headers["last-event-id"] == "1"


async def test_events_of_a_job_that_was_read_to_its_end_are_none(service: CannedService, caller: Caller) -> None:
    service.answer("GET /stream/j", Canned(204))
    assert await caller.events("j", after=5) == []


async def test_events_of_an_unknown_job_are_not_found(service: CannedService, caller: Caller) -> None:
    service.answer("GET /stream/j", problem(404, "not_found"))
    with pytest.raises(NotFoundError):
        await caller.events("j")


async def test_waiting_goes_on_through_a_restart_of_the_service(service: CannedService, caller: Caller) -> None:
    service.answer("GET /jobs/j", problem(503, "draining", retryable=True, retry_after="0"), canned(job("failed")))
    assert await caller.wait("j") == "failed"


async def test_waiting_ends_with_the_callers_patience(service: CannedService, caller: Caller) -> None:
    service.answer("GET /jobs/j", canned(job("running")))
    with pytest.raises(TimeoutError, match="job j has not ended"):
        await caller.wait("j", timeout=0.05)


async def test_cancel_tells_the_state_and_carries_the_reason(service: CannedService, caller: Caller) -> None:
    service.answer("POST /jobs/j/cancel", canned({"job_id": "j", "status": "canceling", "cancelled": True}, 202))
    assert await caller.cancel("j", "no longer needed") == "canceling"
    assert service.received[0].query == "reason=no+longer+needed"


async def test_cancelling_a_finished_job_is_refused(service: CannedService, caller: Caller) -> None:
    service.answer("POST /jobs/j/cancel", problem(409, "already_finished"))
    with pytest.raises(AlreadyFinishedError):
        await caller.cancel("j")


async def test_a_parameter_that_json_cant_carry_is_refused_before_anything_is_sent(
    service: CannedService, caller: Caller
) -> None:
    with pytest.raises(TypeError):
        await caller.invoke(text=object())
    assert service.received == []


async def test_a_caller_may_stop_reading_in_mid_stream(service: CannedService) -> None:
    service.answer("GET /stream/j", stream(sse(1, 2), sse(3)))
    async with AsyncClient(service.url) as client:
        events = client.job("j").events()
        async for event in events:
            assert event.seq == 1
            break
        await events.aclose()
    with Client(service.url) as client:
        assert next(iter(client.job("j").events())).seq == 1


async def test_whole_numbers_of_any_size_go_out_and_come_in_as_they_are(service: CannedService, caller: Caller):
    large = 2**70 + 1
    service.answer("POST /invoke", canned(COMPLETED | {"outputs": {"output": large}}))
    assert (await caller.invoke(number=large)).outputs == {"output": large}
    assert b"%d" % large in service.received[0].body
