"""``POST /invoke`` for a job of the workers."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.api.harness import Served, frames, serving, wait_until
from tests.api.pipelines import failing, gated, shout
from tests.api.worker import working

from pipeserve.jobs import new_job_id


@pytest.fixture
async def served():
    async with serving(shout) as service:
        yield service


@pytest.mark.parametrize("how", [{"mode": "async"}, {"headers": {"Prefer": "respond-async"}}])
async def test_an_async_call_is_accepted_with_its_place_in_the_queue(served: Served, how: dict):
    await served.submit({"text": "before"})
    answer = await served.invoke({"text": "a"}, **how)
    assert answer.status_code == 202
    body = answer.json()
    assert body["status"] == "pending"
    assert body["queue_position"] == 1
    assert body["run_id"] == body["job_id"]
    job = f"/jobs/{body['job_id']}"
    assert answer.headers["location"] == job
    assert body["links"] == {
        "self": job,
        "events": f"{job}/events",
        "stream": f"/stream/{body['job_id']}",
        "cancel": f"{job}/cancel",
        "result": f"{job}/result",
    }
    applied = answer.headers.get("preference-applied")
    assert applied == ("respond-async" if "headers" in how else None)


async def test_bad_parameters_are_refused_before_anything_is_queued(served: Served):
    answer = await served.invoke({"txet": "a"}, mode="async")
    assert answer.status_code == 422
    assert (await served.http.get("/jobs")).json()["total"] == 0


async def test_a_full_queue_is_429_with_retry_after():
    from pipeserve.runtime.memory import MemoryStore

    async with serving(shout, backend=MemoryStore(max_queue_size=1)) as service:
        await service.submit({"text": "a"})
        answer = await service.invoke({"text": "b"}, mode="async")
        assert answer.status_code == 429
        assert answer.json()["code"] == "queue_full"
        assert "retry-after" in answer.headers


async def test_an_async_call_may_wait_for_its_result(served: Served):
    async with working(served):
        answer = await served.invoke({"text": "a"}, headers={"Prefer": "respond-async, wait=5"})
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "respond-async, wait=5"
    assert answer.json()["outputs"] == {"loud": "A!", "length": 2}
    assert answer.json()["metadata"]["parameters_applied"] == ["text"]
    assert [step["status"] for step in answer.json()["metadata"]["steps"]] == ["completed", "completed"]


async def test_an_async_call_that_waits_in_vain_is_accepted(served: Served):
    answer = await served.invoke({"text": "a"}, headers={"Prefer": "respond-async, wait=0.05"})
    assert answer.status_code == 202
    assert answer.json()["status"] == "pending"


async def test_an_async_call_can_stream_its_log(served: Served):
    async with working(served):
        answer = await served.invoke({"text": "a"}, mode="async", headers={"Accept": "text/event-stream"})
    events = [json.loads(block["data"]) for block in frames(answer.text)]
    assert events[0]["event_type"] == "job_queued"
    assert events[-1]["event_type"] == "pipeline_completed"
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


async def test_taps_do_not_go_with_a_queued_job(served: Served):
    answer = await served.invoke({"text": "a"}, mode="async", taps=["upper.shouted"])
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["name"] == "taps"


async def test_synchronous_calls_may_run_on_the_workers():
    async with serving(shout, service={"sync_execution": "queued"}) as service, working(service):
        answer = await service.invoke({"text": "a"})
        assert answer.status_code == 200
        assert answer.json()["outputs"]["loud"] == "A!"
        assert (await service.http.get(f"/jobs/{answer.json()['job_id']}")).json()["worker"] == "test-worker"


async def test_a_failure_on_the_workers_reaches_the_synchronous_caller():
    async with serving(failing, service={"sync_execution": "queued"}) as service, working(service):
        answer = await service.invoke({"kind": "polite"})
        assert answer.status_code == 404
        assert answer.json()["code"] == "document_not_found"
        assert answer.json()["instance"] == "/invoke"


async def test_a_caller_who_leaves_cancels_its_call_on_the_workers():
    held, gate = gated()
    async with serving(held, service={"sync_execution": "queued"}) as service, working(service):
        call = asyncio.create_task(service.invoke())
        await wait_until(gate.entered.is_set, "the worker runs it")
        call.cancel()
        await wait_until(lambda: gate.cancelled, "the run is cancelled")


async def test_a_caller_who_leaves_its_stream_cancels_its_call_on_the_workers():
    held, gate = gated()
    async with serving(held, service={"sync_execution": "queued"}) as service, working(service):
        request = service.http.stream("POST", "/invoke", json={}, headers={"Accept": "text/event-stream"})
        async with request as answer:
            assert answer.status_code == 200
            await wait_until(gate.entered.is_set, "the worker runs it")
        await wait_until(lambda: gate.cancelled, "the run is cancelled")


async def test_a_caller_who_leaves_the_stream_of_an_async_call_does_not_cancel_it(served: Served):
    headers = {"Accept": "text/event-stream"}
    async with served.http.stream("POST", "/invoke?mode=async", json={"parameters": {"text": "a"}}, headers=headers):
        pass
    async with working(served):
        job_id = (await served.http.get("/jobs")).json()["jobs"][0]["job_id"]
        job = (await served.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()
    assert job["status"] == "completed"


async def test_a_caller_who_leaves_does_not_cancel_an_async_call(served: Served):
    call = asyncio.create_task(served.invoke({"text": "a"}, headers={"Prefer": "respond-async, wait=30"}))

    async def queued() -> bool:
        return (await served.http.get("/jobs")).json()["total"] == 1

    await wait_until(queued, "the job is queued")
    call.cancel()
    async with working(served):
        job_id = (await served.http.get("/jobs")).json()["jobs"][0]["job_id"]
        job = (await served.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()
    assert job["status"] == "completed"


async def test_an_id_that_no_job_has_is_not_found(served: Served):
    for job_id in (new_job_id(), "1", "not-an-id", "%00"):
        for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/result", f"/jobs/{job_id}/events", f"/stream/{job_id}"):
            answer = await served.http.get(path)
            assert answer.status_code == 404, path
            assert answer.json()["code"] == "not_found"
        assert (await served.http.post(f"/jobs/{job_id}/cancel")).status_code == 404
