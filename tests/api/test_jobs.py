"""The routes under ``/jobs``."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.api.harness import Served, serving, wait_until
from tests.api.pipelines import failing, gated, rest, secretive, shout
from tests.api.worker import working

from pipeserve.sdk.capture import Capture


@pytest.fixture
async def served():
    async with serving(shout) as service:
        yield service


async def test_jobs_are_listed_newest_first_page_by_page(served: Served):
    ids = [await served.submit({"text": str(number)}) for number in range(5)]
    first = (await served.http.get("/jobs", params={"limit": 3})).json()
    assert [job["job_id"] for job in first["jobs"]] == ids[:1:-1]
    assert first["total"] == 5
    second = (await served.http.get("/jobs", params={"limit": 3, "cursor": first["next_cursor"]})).json()
    assert [job["job_id"] for job in second["jobs"]] == ids[1::-1]
    assert second["next_cursor"] is None


async def test_jobs_are_filtered_by_state_and_labels(served: Served):
    await served.submit({"text": "a"}, labels={"team": "red"})
    wanted = await served.submit({"text": "b"}, labels={"team": "blue", "tier": "1"})
    found = (await served.http.get("/jobs", params={"label.team": "blue", "status": "pending"})).json()
    assert [job["job_id"] for job in found["jobs"]] == [wanted]
    assert found["jobs"][0]["labels"] == {"team": "blue", "tier": "1"}
    assert (await served.http.get("/jobs", params={"label.team": "green"})).json()["total"] == 0
    assert (await served.http.get("/jobs", params={"status": "running"})).json()["total"] == 0


@pytest.mark.parametrize("query", ["status=done", "limit=0", "limit=1001", "limit=many"])
async def test_a_bad_filter_is_422_and_named(served: Served, query: str):
    answer = await served.http.get(f"/jobs?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["name"] == query.partition("=")[0]


async def test_a_made_up_cursor_is_400(served: Served):
    assert (await served.http.get("/jobs?cursor=nonsense")).status_code == 400


async def test_a_pending_job_says_so_and_when_to_look_again(served: Served):
    job_id = await served.submit({"text": "a"}, run_name="mine")
    answer = await served.http.get(f"/jobs/{job_id}")
    job = answer.json()
    assert (job["status"], job["run_name"], job["queue_position"]) == ("pending", "mine", 0)
    assert job["parameters"] == {"text": "a"}
    assert job["links"]["stream"] == f"/stream/{job_id}"
    assert job["created_at"].endswith("Z")
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_long_poll_answers_when_the_job_ends(served: Served):
    job_id = await served.submit({"text": "a"})
    polling = asyncio.create_task(served.http.get(f"/jobs/{job_id}", params={"wait": 10}))
    async with working(served):
        answer = await polling
    assert answer.json()["status"] == "completed"
    assert answer.json()["outputs"] == {"loud": "A!", "length": 2}
    assert "retry-after" not in answer.headers


async def test_a_long_poll_answers_at_the_end_of_its_wait(served: Served):
    job_id = await served.submit({"text": "a"})
    answer = await served.http.get(f"/jobs/{job_id}", params={"wait": 0.05})
    assert answer.json()["status"] == "pending"


@pytest.mark.parametrize("wait", ["-1", "301", "soon", "inf", "nan"])
async def test_a_wait_out_of_bounds_is_422(served: Served, wait: str):
    job_id = await served.submit({"text": "a"})
    assert (await served.http.get(f"/jobs/{job_id}", params={"wait": wait})).status_code == 422


async def test_long_polls_end_when_the_service_drains(served: Served):
    job_id = await served.submit({"text": "a"})
    polling = asyncio.create_task(served.http.get(f"/jobs/{job_id}", params={"wait": 60}))
    asking = asyncio.create_task(served.http.get(f"/jobs/{job_id}/events", params={"wait": 60, "after": 1}))
    await served.http.get("/health/live")
    served.drain.begin()
    assert (await polling).json()["status"] == "pending"
    assert (await asking).json() == {"events": [], "next": 1, "done": False}


async def test_a_synchronous_run_is_a_job_while_it_runs_and_after():
    held, gate = gated()
    async with serving(held) as service:
        call = asyncio.create_task(service.invoke({"text": "x"}, run_name="sync"))
        await wait_until(gate.entered.is_set, "the run is under way")
        job_id = next(iter(await _running(service)))
        job = (await service.http.get(f"/jobs/{job_id}")).json()
        assert (job["status"], job["run_name"]) == ("running", "sync")
        gate.opened.set()
        assert (await call).json()["job_id"] == job_id

        async def listed() -> bool:
            return (await service.http.get("/jobs", params={"status": "completed"})).json()["total"] == 1

        await wait_until(listed, "its record is published")
        assert (await service.http.get(f"/jobs/{job_id}/result")).json()["outputs"] == {"output": "x"}


async def _running(service: Served) -> list[str]:
    return [run.job_id for run in service.services.runtime._runs]


async def test_a_memory_only_run_leaves_no_trace():
    async with serving(secretive) as service:
        job_id = (await service.invoke({"text": "x"})).json()["job_id"]
        assert (await service.http.get(f"/jobs/{job_id}")).status_code == 404
        assert (await service.http.get("/jobs")).json()["total"] == 0


# --- cancel


async def test_a_pending_job_is_canceled_at_once_and_again_without_harm(served: Served):
    job_id = await served.submit({"text": "a"})
    for _ in range(2):
        answer = await served.http.post(f"/jobs/{job_id}/cancel", params={"reason": "changed my mind"})
        assert answer.status_code == 202
        body = answer.json()
        assert (body["job_id"], body["status"], body["cancelled"]) == (job_id, "canceled", True)
        assert body["message"]
    job = (await served.http.get(f"/jobs/{job_id}")).json()
    assert (job["status"], job["cancel_reason"]) == ("canceled", "changed my mind")


async def test_a_running_job_is_asked_to_stop():
    held, gate = gated()
    async with serving(held) as service, working(service):
        job_id = await service.submit()
        await wait_until(gate.entered.is_set, "a worker runs it")
        answer = await service.http.post(f"/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "canceling")
        job = (await service.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()
        assert job["status"] == "canceled"


async def test_a_synchronous_run_can_be_canceled_and_its_caller_is_told():
    held, gate = gated()
    async with serving(held) as service:
        call = asyncio.create_task(service.invoke())
        await wait_until(gate.entered.is_set, "the run is under way")
        (job_id,) = await _running(service)
        answer = await service.http.post(f"/jobs/{job_id}/cancel", params={"reason": "no more"})
        assert answer.status_code == 202
        assert (await call).status_code == 409
        assert (await call).json()["code"] == "canceled"


async def test_a_run_that_outlived_its_callers_wait_can_be_canceled():
    held, gate = gated()
    async with serving(held) as service:
        job_id = (await service.invoke(headers={"Prefer": "wait=0.02"})).json()["job_id"]
        assert (await service.http.post(f"/jobs/{job_id}/cancel")).status_code == 202
        job = (await service.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()
        assert job["status"] == "canceled"
        assert gate.cancelled


async def test_a_finished_job_can_not_be_canceled(served: Served):
    async with working(served):
        job_id = await served.submit({"text": "a"})
        await served.http.get(f"/jobs/{job_id}", params={"wait": 5})
    answer = await served.http.post(f"/jobs/{job_id}/cancel")
    assert answer.status_code == 409
    problem = answer.json()
    assert (problem["code"], problem["job_status"], problem["job_id"]) == ("already_finished", "completed", job_id)
    assert "completed" in problem["detail"]


# --- result


async def test_a_result_is_202_until_there_is_one(served: Served):
    job_id = await served.submit({"text": "a"})
    answer = await served.http.get(f"/jobs/{job_id}/result")
    assert answer.status_code == 202
    assert answer.json()["status"] == "pending"
    assert int(answer.headers["retry-after"]) >= 1
    async with working(served):
        await served.http.get(f"/jobs/{job_id}", params={"wait": 5})
    answer = await served.http.get(f"/jobs/{job_id}/result")
    assert answer.status_code == 200
    assert answer.json()["outputs"] == {"loud": "A!", "length": 2}
    assert answer.json()["metadata"]["parameters_applied"] == ["text"]


async def test_the_result_of_a_failed_job_is_its_problem():
    async with serving(failing) as service, working(service):
        job_id = await service.submit({"kind": "polite"})
        await service.http.get(f"/jobs/{job_id}", params={"wait": 5})
        answer = await service.http.get(f"/jobs/{job_id}/result")
        assert answer.status_code == 404
        problem = answer.json()
        assert (problem["code"], problem["job_id"]) == ("document_not_found", job_id)
        assert problem["instance"] == f"/jobs/{job_id}/result"


async def test_the_result_of_a_job_that_ended_without_one_says_how(served: Served):
    job_id = await served.submit({"text": "a"})
    await served.http.post(f"/jobs/{job_id}/cancel")
    answer = await served.http.get(f"/jobs/{job_id}/result")
    assert (answer.status_code, answer.json()["code"]) == (409, "canceled")
    async with serving(rest) as service, working(service):
        slow = await service.submit({"seconds": 30}, timeout=0.05)
        await service.http.get(f"/jobs/{slow}", params={"wait": 5})
        answer = await service.http.get(f"/jobs/{slow}/result")
        assert (answer.status_code, answer.json()["code"]) == (504, "timed_out")


# --- events


async def test_a_log_is_read_in_parts(served: Served):
    job_id = await served.submit({"text": "a"})
    queued = (await served.http.get(f"/jobs/{job_id}/events")).json()
    assert [event["event_type"] for event in queued["events"]] == ["job_queued"]
    assert (queued["next"], queued["done"]) == (1, False)
    async with working(served):
        page = queued
        seen = list(queued["events"])
        while not page["done"]:
            query = {"after": page["next"], "wait": 5}
            page = (await served.http.get(f"/jobs/{job_id}/events", params=query)).json()
            seen += page["events"]
    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1]["event_type"] == "pipeline_completed"
    end = (await served.http.get(f"/jobs/{job_id}/events", params={"after": page["next"]})).json()
    assert end == {"events": [], "next": page["next"], "done": True}


async def test_the_log_of_a_running_synchronous_call_is_read_here():
    held, gate = gated()
    async with serving(held) as service:
        call = asyncio.create_task(service.invoke())
        await wait_until(gate.entered.is_set, "the run is under way")
        (job_id,) = await _running(service)

        async def emitted() -> bool:
            page = (await service.http.get(f"/jobs/{job_id}/events")).json()
            return "output" in [event["event_type"] for event in page["events"]]

        await wait_until(emitted, "what the step emits is in its log")
        gate.opened.set()
        await call


@pytest.mark.parametrize("capture", [None, Capture(memory_only=True)])
async def test_a_long_poll_beyond_the_end_of_a_log_answers_when_a_synchronous_call_ends(capture: Capture | None):
    held, gate = gated(capture=capture)
    async with serving(held) as service:
        call = asyncio.create_task(service.invoke())
        await wait_until(gate.entered.is_set, "the run is under way")
        (job_id,) = await _running(service)
        polling = asyncio.create_task(_poll_beyond(service, job_id))
        run = service.services.inline.find(job_id)
        assert run is not None
        await wait_until(lambda: run.log._readers, "the log is followed")
        gate.opened.set()
        assert await polling == {"events": [], "next": 500, "done": True}
        await call


async def test_a_long_poll_beyond_the_end_of_a_log_answers_when_a_job_ends():
    held, gate = gated()
    async with serving(held) as service, working(service):
        job_id = await service.submit()
        polling = asyncio.create_task(_poll_beyond(service, job_id))
        await wait_until(lambda: service.store.log._followers, "the log is followed")
        gate.opened.set()
        assert await polling == {"events": [], "next": 500, "done": True}


async def _poll_beyond(service: Served, job_id: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        answer = await service.http.get(f"/jobs/{job_id}/events", params={"after": 500, "wait": 30})
    return answer.json()


@pytest.mark.parametrize("after", ["-1", "x", "1.5", str(2**53 + 1), str(2**64)])
async def test_a_bad_position_in_a_log_is_422(served: Served, after: str):
    job_id = await served.submit({"text": "a"})
    assert (await served.http.get(f"/jobs/{job_id}/events", params={"after": after})).status_code == 422
