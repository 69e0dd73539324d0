"""A call that tells of each event, and ids of the caller's own."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from typing import Any

import httpx
import pytest
from tests.client.conftest import CannedService, canned, job, sse, stream

from pipeserve.client import AsyncClient, AsyncJob, Client, Job
from pipeserve.events import Event

ACCEPTED = canned({"job_id": "j", "status": "pending"}, 202)
CANCELED = canned({"job_id": "j", "status": "canceling", "message": "m", "cancelled": True}, 202)
both = pytest.mark.parametrize("kind", ["blocking", "async"])


async def subscribed(kind: str, service: CannedService, on_event: Any, **options: Any) -> Any:
    if kind == "blocking":
        with Client(service.url) as client:
            return await asyncio.to_thread(lambda: client.subscribe({"x": 1}, on_event=on_event, y=2, **options))
    async with AsyncClient(service.url) as client:
        return await client.subscribe({"x": 1}, on_event=on_event, y=2, **options)


@both
async def test_each_event_is_told_and_the_outputs_are_returned(service: CannedService, kind: str) -> None:
    service.answer("POST /invoke", ACCEPTED)
    service.answer("GET /stream/j", stream(sse(1, 2, 3, last="pipeline_completed")))
    service.answer("GET /jobs/j", canned(job("completed", outputs={"output": 7})))
    seqs: list[int] = []
    result = await subscribed(kind, service, lambda event: seqs.append(event.seq), into=int)
    assert (result.outputs, seqs) == (7, [1, 2, 3])
    assert service.received[0].json == {"parameters": {"x": 1, "y": 2}}


async def test_an_async_listener_is_awaited(service: CannedService) -> None:
    service.answer("POST /invoke", ACCEPTED)
    service.answer("GET /stream/j", stream(sse(1, 2, last="pipeline_completed")))
    service.answer("GET /jobs/j", canned(job("completed", outputs={"output": 7})))
    seqs: list[int] = []

    async def listen(event: Event) -> None:
        await asyncio.sleep(0)
        seqs.append(event.seq)

    await subscribed("async", service, listen)
    assert seqs == [1, 2]


@both
async def test_a_listener_that_raises_ends_the_job(service: CannedService, kind: str) -> None:
    service.answer("POST /invoke", ACCEPTED)
    service.answer("GET /stream/j", stream(sse(1, 2)))
    service.answer("POST /jobs/j/cancel", CANCELED)

    def listen(event: Event) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        await subscribed(kind, service, listen)
    assert service.received[-1].path == "/jobs/j/cancel"
    assert service.received[-1].query == "reason=its+subscriber+has+left"


async def test_a_subscriber_that_is_canceled_ends_the_job(service: CannedService) -> None:
    service.answer("POST /invoke", ACCEPTED)
    service.answer("GET /stream/j", stream(sse(1, 2)))
    service.answer("POST /jobs/j/cancel", CANCELED)
    reached = asyncio.Event()

    async def listen(event: Event) -> None:
        reached.set()
        await asyncio.Event().wait()

    calling = asyncio.create_task(subscribed("async", service, listen))
    await reached.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert service.received[-1].path == "/jobs/j/cancel"


@both
async def test_a_job_has_the_id_that_its_caller_chose(service: CannedService, kind: str) -> None:
    job_id = str(uuid.uuid4())
    # Without an answer it is sent again: the id is a key.
    service.answer(f"PUT /jobs/{job_id}", canned({}, 502), canned({"job_id": job_id, "status": "pending"}, 202))
    if kind == "blocking":
        with Client(service.url) as client:
            submitted: Job | AsyncJob = await asyncio.to_thread(client.with_options(job_id=job_id).submit, x=1)
    else:
        async with AsyncClient(service.url) as client:
            submitted = await client.with_options(job_id=job_id).submit(x=1)
    assert submitted.job_id == job_id
    assert [request.json for request in service.received] == [{"parameters": {"x": 1}}] * 2


def test_an_id_of_ones_own_is_a_uuid_and_for_one_job() -> None:
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(ValueError, match="UUID"):
            client.with_options(job_id="mine")
        named = client.with_options(job_id=str(uuid.uuid4()))
        for call in (named.invoke, lambda: named.submit_many([{}]), lambda: list(named.map([{}]))):
            with pytest.raises(ValueError, match="job_id: it names one job"):
                call()


async def test_headers_and_transport_are_the_callers(service: CannedService) -> None:
    service.answer("GET /info", canned({"version": "1"}))
    with Client(service.url, "key", headers={"X-Team": "a"}, transport=httpx.HTTPTransport()) as client:
        await asyncio.to_thread(client.info)
    async with AsyncClient(service.url, headers={"X-Team": "b"}, transport=httpx.AsyncHTTPTransport()) as other:
        await other.info()
    assert [request.headers["x-team"] for request in service.received] == ["a", "b"]
    assert service.received[0].headers["authorization"] == "Bearer key"


@pytest.mark.parametrize(("blocking", "async_"), [(Client, AsyncClient), (Job, AsyncJob)])
def test_both_clients_offer_the_same(blocking: type, async_: type) -> None:
    def offered(of: type) -> dict[str, list[str]]:
        public = {name: member for name, member in vars(of).items() if not name.startswith("_")}
        return {name: list(inspect.signature(member).parameters) for name, member in public.items()}

    assert offered(blocking) == offered(async_)
