"""``PUT /jobs/{id}``: a job under an id that its caller chose."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.api.harness import Served, serving
from tests.api.pipelines import shout
from tests.api.worker import working

from pipeserve_api.services import Backend


@pytest.fixture
async def served(backend: Backend) -> AsyncIterator[Served]:
    async with serving(shout, backend=backend) as service:
        yield service


async def put(service: Served, job_id: str, parameters: Any = None, **options: Any) -> httpx.Response:
    headers = options.pop("headers", {})
    body = {"parameters": {"text": "a"} if parameters is None else parameters, **options}
    return await service.http.put(f"/jobs/{job_id}", json=body, headers=headers)


def replayed(answer: httpx.Response) -> bool:
    return answer.headers.get("idempotency-replayed") == "true"


async def test_a_job_has_the_id_that_its_caller_chose(served: Served):
    job_id = str(uuid.uuid4())
    answer = await put(served, job_id, run_name="mine", labels={"a": "b"}, priority=2)
    assert (answer.status_code, replayed(answer)) == (202, False)
    assert answer.headers["location"] == f"/jobs/{job_id}"
    assert (answer.json()["job_id"], answer.json()["status"], answer.json()["queue_position"]) == (job_id, "pending", 0)
    async with working(served):
        job = (await served.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()
    assert (job["status"], job["outputs"]["loud"], job["run_name"]) == ("completed", "A!", "mine")


async def test_the_same_again_is_the_same_job(served: Served):
    job_id = str(uuid.uuid4())
    answers = await asyncio.gather(*(put(served, job_id) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert sum(replayed(answer) for answer in answers) == 19
    async with working(served):
        await served.http.get(f"/jobs/{job_id}", params={"wait": 5})
    again = await put(served, job_id)
    assert (again.status_code, replayed(again), again.json()["status"]) == (202, True, "completed")
    assert (await served.http.get("/jobs")).json()["total"] == 1


async def test_another_body_under_the_id_is_a_mismatch(served: Served):
    job_id = str(uuid.uuid4())
    await put(served, job_id)
    answer = await put(served, job_id, {"text": "b"})
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
    assert answer.json()["instance"] == f"/jobs/{job_id}"


async def test_an_id_is_the_same_in_capitals(served: Served):
    job_id = str(uuid.uuid4())
    await put(served, job_id)
    again = await put(served, job_id.upper())
    assert (again.json()["job_id"], replayed(again)) == (job_id, True)


@pytest.mark.parametrize(
    "job_id", ["mine", "123", "0199c0de00007000800000000000000a", "{0199c0de-0000-7000-8000-0000}"]
)
async def test_an_id_that_is_no_uuid_is_422(served: Served, job_id: str):
    answer = await put(served, job_id)
    assert (answer.status_code, answer.json()["errors"][0]["name"]) == (422, "job_id")


async def test_a_job_that_was_submitted_otherwise_is_not_the_callers_to_put(served: Served):
    queued = await served.submit({"text": "a"})
    ran = (await served.invoke({"text": "a"})).json()["job_id"]
    for job_id in (queued, ran):
        for _ in range(2):
            answer = await put(served, job_id)
            assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
        await served.http.get(f"/jobs/{ran}", params={"wait": 5})


async def test_a_body_is_checked_as_that_of_any_call(served: Served):
    job_id = str(uuid.uuid4())
    for wrong in ({"txet": "a"}, {"text": "a", "times": "x"}):
        assert (await put(served, job_id, wrong)).json()["code"] == "invalid_parameters"
    assert (await put(served, job_id, taps=["upper.shouted"])).json()["errors"][0]["name"] == "taps"
    assert (await served.http.put(f"/jobs/{job_id}", content=b"{")).status_code == 400
    assert (await served.http.get(f"/jobs/{job_id}")).status_code == 404
    assert (await put(served, job_id)).status_code == 202


async def test_who_puts_a_job_may_wait_for_it(served: Served):
    async with working(served):
        answer = await put(served, str(uuid.uuid4()), headers={"Prefer": "wait=5"})
    assert (answer.status_code, answer.json()["outputs"]["loud"]) == (200, "A!")


async def test_a_body_over_the_limit_is_413():
    async with serving(shout, service={"max_body": 100}) as service:
        assert (await put(service, str(uuid.uuid4()), {"text": "x" * 100})).status_code == 413


async def test_nothing_is_put_into_a_service_that_shuts_down(served: Served):
    served.drain.begin()
    assert (await put(served, str(uuid.uuid4()))).json()["code"] == "draining"
