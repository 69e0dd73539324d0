"""``Idempotency-Key``: the same request again is the same job."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from tests.api.away import AwayStore
from tests.api.harness import Served, frames, serving, wait_until
from tests.api.pipelines import failing, gated, shout
from tests.api.worker import working

from pipeserve import Capture, pipeline, step
from pipeserve_api.services import Backend

KEY = {"Idempotency-Key": "order-7"}
REPLAY = "invoked again with the same key"
STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
async def served(backend: Backend) -> AsyncIterator[Served]:
    async with serving(shout, backend=backend) as service:
        yield service


def counting(*, memory_only: bool = False):
    """A pipeline that answers how often it has run."""
    runs = itertools.count(1)

    @step
    async def count(text: str) -> int:
        return next(runs)

    @pipeline(capture=Capture(memory_only=memory_only))
    def counted(text: str = ""):
        return count(text)

    return counted


def replayed(answer: httpx.Response) -> bool:
    return answer.headers.get("idempotency-replayed") == "true"


async def settled(service: Served, job_id: str) -> dict[str, Any]:
    return (await service.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()


# --- the key itself


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "naïve", "tab\tkey"])
async def test_a_key_that_is_none_is_400(key: str):
    async with serving(shout) as service:
        for path in ("/invoke", "/invoke/batch"):
            answer = await service.http.post(path, json={}, headers={b"idempotency-key": key.encode("latin-1")})
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def test_two_keys_are_400():
    async with serving(shout) as service:
        headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
        assert (await service.http.post("/invoke", json={}, headers=headers)).status_code == 400


async def test_the_longest_key_is_a_key():
    async with serving(shout) as service:
        assert (await service.invoke({"text": "a"}, headers={"Idempotency-Key": "~" * 255})).status_code == 200


async def test_no_key_is_stored_as_it_is(served: Served):
    job_id = await served.submit({"text": "a"}, headers={"Idempotency-Key": "my-own-secret-key"})
    assert "my-own-secret-key" not in (await served.http.get(f"/jobs/{job_id}")).text


# --- asynchronous calls


async def test_a_repeated_async_call_is_the_same_job(served: Served):
    first = await served.invoke({"text": "a"}, mode="async", headers=KEY)
    again = await served.invoke({"text": "a"}, mode="async", headers=KEY)
    assert (first.status_code, again.status_code) == (202, 202)
    assert (replayed(first), replayed(again)) == (False, True)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert (await served.http.get("/jobs")).json()["total"] == 1


async def test_a_hundred_async_calls_at_once_make_one_job(served: Served):
    answers = await asyncio.gather(*(served.invoke({"text": "a"}, mode="async", headers=KEY) for _ in range(100)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert sum(replayed(answer) for answer in answers) == 99
    assert (await served.http.get("/jobs")).json()["total"] == 1


async def test_a_replay_tells_the_jobs_status_as_it_is_now(served: Served):
    job_id = await served.submit({"text": "a"}, headers=KEY)
    async with working(served):
        await settled(served, job_id)
    again = await served.invoke({"text": "a"}, mode="async", headers=KEY)
    assert (again.status_code, again.json()["status"], again.json()["queue_position"]) == (202, "completed", None)


async def test_another_body_under_the_same_key_is_a_mismatch(served: Served):
    job_id = await served.submit({"text": "a"}, headers=KEY)
    for mode in ("async", "sync"):
        answer = await served.invoke({"text": "b"}, mode=mode, headers=KEY)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
        assert answer.json()["job_id"] == job_id
        assert not replayed(answer)
    assert (await served.http.get("/jobs")).json()["total"] == 1


async def test_what_else_a_request_asks_of_its_run_is_part_of_it(served: Served):
    await served.submit({"text": "a"}, headers=KEY)
    answer = await served.invoke({"text": "a"}, mode="async", headers={**KEY, "Cache-Control": "no-store"})
    assert answer.json()["code"] == "idempotency_mismatch"


@pytest.mark.parametrize(
    "body",
    [
        b'{"parameters":{"text":"a","times":2},"labels":{"x":"1"}}',
        b'{ "labels": {"x": "1"},\n "parameters": {"times": 2, "text": "a"} }',
        b'{"labels":{"x":"1"},"parameters":{"times":2,"text":"\\u0061"},"timeout":null}',
    ],
)
async def test_the_same_request_written_another_way_is_the_same(served: Served, body: bytes):
    first = await served.submit({"text": "a", "times": 2}, labels={"x": "1"}, headers=KEY)
    answer = await served.http.post("/invoke?mode=async", content=body, headers=KEY)
    assert (answer.json().get("job_id"), replayed(answer)) == (first, True)


async def test_other_keys_and_no_key_make_other_jobs(served: Served):
    calls = [KEY, {"Idempotency-Key": "order-8"}, {}, {}]
    ids = [await served.submit({"text": "a"}, headers=headers) for headers in calls]
    assert len(set(ids)) == 4


async def test_each_caller_has_keys_of_its_own(backend: Backend):
    async with serving(shout, backend=backend, service={"auth_key": "ann, ben"}) as service:
        ids = [
            await service.submit({"text": "a"}, headers=KEY | {"X-API-Key": caller}) for caller in ("ann", "ben", "ann")
        ]
    assert ids[0] == ids[2] != ids[1]


async def test_a_refused_call_leaves_its_key_free(served: Served):
    assert (await served.invoke({"txet": "a"}, mode="async", headers=KEY)).status_code == 422
    assert not replayed(await served.invoke({"text": "a"}, mode="async", headers=KEY))


# --- synchronous calls


@pytest.mark.parametrize("memory_only", [False, True])
async def test_a_repeated_sync_call_answers_the_first_ones_result(backend: Backend, memory_only: bool):
    async with serving(counting(memory_only=memory_only), backend=backend) as service:
        first = await service.invoke(headers=KEY)
        again = await service.invoke(headers=KEY)
        assert (first.status_code, again.status_code) == (200, 200)
        assert (replayed(first), replayed(again)) == (False, True)
        assert again.json()["outputs"] == first.json()["outputs"] == {"output": 1}
        assert again.json()["job_id"] == first.json()["job_id"]
        assert (await settled(service, first.json()["job_id"]))["status"] == "completed"
        recorded = await service.invoke(headers=KEY)
        assert (replayed(recorded), recorded.json()["outputs"]) == (True, {"output": 1})


@pytest.mark.parametrize("memory_only", [False, True])
async def test_a_hundred_sync_calls_at_once_run_once(backend: Backend, memory_only: bool):
    async with serving(counting(memory_only=memory_only), backend=backend) as service:
        answers = await asyncio.gather(*(service.invoke(headers=KEY) for _ in range(100)))
        assert {answer.status_code for answer in answers} == {200}
        assert {orjson.dumps(answer.json()["outputs"]) for answer in answers} == {b'{"output":1}'}
        assert sum(replayed(answer) for answer in answers) == 99


async def test_those_who_wait_for_one_run_take_one_place():
    held, gate = gated()
    async with serving(held, runtime={"max_concurrency": 2}) as service:
        calls = [asyncio.create_task(service.invoke(headers=KEY)) for _ in range(20)]
        await wait_until(gate.entered.is_set, "the run is under way")
        other = asyncio.create_task(service.invoke(headers={"Idempotency-Key": "other"}))
        await wait_until(lambda: service.services.runtime.active == 2, "another run has found a place")
        assert (await service.invoke(headers={"Idempotency-Key": "third"})).json()["code"] == "overloaded"
        assert service.services.runtime.active == 2
        gate.opened.set()
        assert {answer.status_code for answer in await asyncio.gather(*calls, other)} == {200}


async def test_a_sync_call_and_an_async_one_under_one_key_are_one_job(backend: Backend):
    async with serving(counting(), backend=backend) as service:
        ran = await service.invoke(headers=KEY)
        queued = await service.invoke(mode="async", headers=KEY)
        assert (queued.status_code, replayed(queued)) == (202, True)
        assert queued.json()["job_id"] == ran.json()["job_id"]
        other = {"Idempotency-Key": "other"}
        job_id = await service.submit(headers=other)
        async with working(service):
            answer = await service.invoke(headers=other)
        assert (answer.status_code, replayed(answer), answer.json()["job_id"]) == (200, True, job_id)
        assert answer.json()["outputs"] == {"output": 2}


async def test_a_replayed_failure_is_the_first_ones_problem(backend: Backend):
    async with serving(failing, backend=backend) as service:
        first = await service.invoke({"kind": "polite"}, headers=KEY)
        again = await service.invoke({"kind": "polite"}, headers=KEY)
        await settled(service, first.json()["job_id"])
        recorded = await service.invoke({"kind": "polite"}, headers=KEY)
        for answer in (first, again, recorded):
            assert (answer.status_code, answer.json()["code"]) == (404, "document_not_found")
            assert answer.json()["job_id"] == first.json()["job_id"]
        assert [replayed(answer) for answer in (first, again, recorded)] == [False, True, True]


async def test_a_caller_with_a_key_may_leave_and_come_back(backend: Backend, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    held, gate = gated()
    async with serving(held, backend=backend) as service:
        call = asyncio.create_task(service.invoke({"text": "kept"}, headers=KEY))
        await wait_until(gate.entered.is_set, "the run is under way")
        call.cancel()
        again = asyncio.create_task(service.invoke({"text": "kept"}, headers=KEY))
        another = asyncio.create_task(service.invoke({"text": "kept"}, headers=KEY))
        await asyncio.wait([call])
        await wait_until(lambda: caplog.messages.count(REPLAY) == 2, "both wait for the run")
        another.cancel()
        await asyncio.wait([another])
        gate.opened.set()
        answer = await again
        assert (answer.status_code, replayed(answer)) == (200, True)
        assert answer.json()["outputs"] == {"output": "kept"}
        assert not gate.cancelled


async def test_another_replica_answers_for_the_same_run(backend: Backend):
    held, gate = gated()
    async with serving(held, backend=backend) as here, serving(held, backend=backend) as there:
        first = asyncio.create_task(here.invoke({"text": "once"}, headers=KEY))
        await wait_until(gate.entered.is_set, "the run is under way")
        again = asyncio.create_task(there.invoke({"text": "once"}, headers=KEY))
        queued = await there.invoke({"text": "once"}, mode="async", headers=KEY)
        assert (queued.status_code, replayed(queued), queued.json()["status"]) == (202, True, "running")
        assert there.services.runtime.active == 0
        gate.opened.set()
        ran, told = await first, await again
        assert (told.status_code, replayed(told)) == (200, True)
        for member in ("job_id", "outputs"):
            assert told.json()[member] == ran.json()[member]
        assert told.json()["metadata"]["parameters_applied"] == ["text"]


async def test_a_replay_that_waits_in_vain_is_a_202_for_the_same_job(backend: Backend):
    held, gate = gated()
    async with serving(held, backend=backend) as service:
        first = asyncio.create_task(service.invoke(headers=KEY))
        await wait_until(gate.entered.is_set, "the run is under way")
        again = await service.invoke(headers=KEY | {"Prefer": "wait=0.02"})
        assert (again.status_code, replayed(again), again.json()["status"]) == (202, True, "running")
        gate.opened.set()
        assert (await first).json()["job_id"] == again.json()["job_id"]


async def test_a_first_call_that_waits_in_vain_is_a_202(backend: Backend):
    held, gate = gated()
    async with serving(held, backend=backend) as service:
        first = await service.invoke(headers=KEY | {"Prefer": "wait=0.02"})
        assert (first.status_code, replayed(first)) == (202, False)
        gate.opened.set()
        again = await service.invoke(headers=KEY)
        assert (again.status_code, replayed(again)) == (200, True)


async def test_taps_come_with_the_replay_while_the_run_is_here():
    held, gate = gated()
    async with serving(held) as service:
        calls = [asyncio.create_task(service.invoke(headers=KEY, taps=["hold.output"])) for _ in range(2)]
        await wait_until(gate.entered.is_set, "the run is under way")
        gate.opened.set()
        assert [answer.json()["taps"] for answer in await asyncio.gather(*calls)] == [{"hold.output": "through"}] * 2


async def test_a_sync_call_with_a_key_needs_the_store():
    async with serving(counting(), backend=AwayStore()) as service:
        answer = await service.invoke(headers=KEY)
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert "retry-after" in answer.headers
        assert (await service.invoke()).json()["outputs"] == {"output": 1}


async def test_a_run_with_a_key_is_in_the_store_before_it_runs(backend: Backend):
    held, gate = gated(capture=Capture(memory_only=True))
    async with serving(held, backend=backend) as service:
        call = asyncio.create_task(service.invoke(headers=KEY))
        await wait_until(gate.entered.is_set, "the run is under way")
        (job,) = (await service.http.get("/jobs")).json()["jobs"]
        assert (job["status"], job["parameters"]) == ("running", None)
        gate.opened.set()
        assert (await call).json()["job_id"] == job["job_id"]


async def test_synchronous_calls_on_the_workers_keep_to_the_key_too(backend: Backend):
    held, gate = gated()
    async with serving(held, backend=backend, service={"sync_execution": "queued"}) as service, working(service):
        first = asyncio.create_task(service.invoke(headers=KEY))
        await wait_until(gate.entered.is_set, "the worker runs it")
        first.cancel()
        await asyncio.wait([first])
        again = asyncio.create_task(service.invoke(headers=KEY))
        gate.opened.set()
        answer = await again
        assert (answer.status_code, replayed(answer), gate.cancelled) == (200, True, False)
        assert (await service.http.get("/jobs")).json()["total"] == 1


# --- streams


async def test_a_replayed_stream_has_every_event_from_the_first(backend: Backend):
    held, gate = gated()
    async with serving(held, backend=backend) as service:
        first = asyncio.create_task(service.invoke(headers=KEY | STREAM))
        await wait_until(gate.entered.is_set, "the run is under way")
        again = asyncio.create_task(service.invoke(headers=KEY | STREAM))
        gate.opened.set()
        streams = [await first, await again]
        job_id = streams[0].headers["location"].removeprefix("/jobs/")
        await settled(service, job_id)
        streams.append(await service.invoke(headers=KEY | STREAM))
        assert [replayed(answer) for answer in streams] == [False, True, True]
        for answer in streams:
            assert answer.headers["location"] == f"/jobs/{job_id}"
            events = [(block["id"], block["event"]) for block in frames(answer.text) if "data" in block]
            assert next(event for event in events if event[1] != "progress_update") == ("1", "pipeline_started")
            assert events[-1][1] == "pipeline_completed"
            assert [int(number) for number, _ in events] == list(range(1, len(events) + 1))


async def test_who_leaves_the_stream_of_a_call_with_a_key_does_not_cancel_it(backend: Backend):
    held, gate = gated()
    async with serving(held, backend=backend) as service:
        request = service.http.stream("POST", "/invoke", json={}, headers=KEY | STREAM)
        async with request as answer:
            assert answer.status_code == 200
            await wait_until(gate.entered.is_set, "the run is under way")
        again = asyncio.create_task(service.invoke(headers=KEY))
        gate.opened.set()
        assert (await again).json()["outputs"] == {"output": "through"}
        assert not gate.cancelled
