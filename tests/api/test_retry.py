"""``POST /jobs/{id}/retry``, and how to find what is worth it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.api.harness import Served, serving, wait_until
from tests.api.pipelines import failing, gated, secretive, shout
from tests.api.worker import working

from pipeserve import Secret, pipeline, step
from pipeserve.jobs import new_job_id
from pipeserve_api.services import Backend

KEY = {"Idempotency-Key": "again"}


@pytest.fixture
async def served(backend: Backend) -> AsyncIterator[Served]:
    async with serving(shout, backend=backend) as service:
        yield service


async def retry(service: Served, job_id: str, **headers: str) -> httpx.Response:
    return await service.http.post(f"/jobs/{job_id}/retry", headers=headers)


async def ended(service: Served, job_id: str) -> dict[str, Any]:
    return (await service.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()


async def test_a_retry_is_a_new_job_with_the_same_input(served: Served):
    labels = {"tenant": "acme", "n": "1"}
    first = await served.submit({"text": "a"}, run_name="mine", labels=labels, timeout=9, priority=4, expires_in=60)
    async with working(served):
        await ended(served, first)
        answer = await retry(served, first)
        assert answer.status_code == 202
        assert "idempotency-replayed" not in answer.headers
        body = answer.json()
        assert body["job_id"] != first
        assert answer.headers["location"] == f"/jobs/{body['job_id']}" == body["links"]["self"]
        assert body["status"] == "pending"
        job = await ended(served, body["job_id"])
    assert (job["status"], job["outputs"], job["retried_from"]) == ("completed", {"loud": "A!", "length": 2}, first)
    assert (job["run_name"], job["labels"], job["priority"]) == ("mine", labels, 4)
    assert (job["parameters"], job["run_at"], job["expires_at"]) == ({"text": "a"}, None, None)
    assert (await ended(served, first))["retried_from"] is None


async def test_a_synchronous_call_can_be_retried_at_once_and_later(served: Served):
    first = (await served.invoke({"text": "a"})).json()["job_id"]
    async with working(served):
        at_once = await retry(served, first)

        async def recorded() -> bool:
            return served.services.inline.find(first) is None

        await wait_until(recorded, "the store has the run")
        later = await retry(served, first)
        for answer in (at_once, later):
            job = await ended(served, answer.json()["job_id"])
            assert (job["status"], job["retried_from"], job["max_attempts"]) == ("completed", first, 3)


async def test_a_job_that_has_not_ended_is_not_retryable(backend: Backend):
    held, gate = gated()
    async with serving(held, backend=backend) as service:
        waiting = await service.submit()
        running = (await service.invoke(headers={"Prefer": "wait=0.01"})).json()["job_id"]
        for job_id in (waiting, running):
            answer = await retry(service, job_id)
            assert (answer.status_code, answer.json()["code"], answer.json()["job_id"]) == (
                409,
                "not_retryable",
                job_id,
            )
        gate.opened.set()


async def test_a_job_whose_input_was_not_kept_is_not_retryable(backend: Backend):
    async with serving(secretive, backend=backend) as service:
        job_id = await service.submit({"text": "a"})
        async with working(service):
            await ended(service, job_id)
        answer = await retry(service, job_id)
        assert (answer.status_code, answer.json()["code"]) == (409, "not_retryable")


@step
def unlock(code: Secret[str]) -> int:
    return len(code)


@pipeline
def vault(code: Secret[str]):
    return unlock(code)


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_job_with_masked_parameters_is_not_retryable_and_says_why(backend: Backend, mode: str):
    async with serving(vault, backend=backend) as service, working(service):
        job_id = (await service.invoke({"code": "12345"}, mode=mode)).json()["job_id"]
        await ended(service, job_id)
        for _ in range(2):
            answer = await retry(service, job_id)
            assert (answer.status_code, answer.json()["code"]) == (409, "not_retryable")
            assert "kept" in answer.json()["detail"]
            await wait_until(lambda: service.services.inline.find(job_id) is None, "the store has it")


async def test_an_unknown_job_is_404(served: Served):
    for job_id in (new_job_id(), "1"):
        assert (await retry(served, job_id)).status_code == 404


async def test_a_retry_under_the_same_key_is_one_job(served: Served):
    first, other = await served.submit({"text": "a"}), await served.submit({"text": "b"})
    async with working(served):
        await ended(served, other)
        await ended(served, first)
        once, again = await retry(served, first, **KEY), await retry(served, first, **KEY)
        assert once.json()["job_id"] == again.json()["job_id"]
        assert again.headers["idempotency-replayed"] == "true"
        assert (await ended(served, once.json()["job_id"]))["status"] == "completed"
        assert (await retry(served, first, **KEY)).json()["status"] == "completed"
        assert (await retry(served, other, **KEY)).json()["code"] == "idempotency_mismatch"
        assert (await retry(served, first)).json()["job_id"] != once.json()["job_id"]
    assert (await retry(served, first, **{"Idempotency-Key": "two words"})).status_code == 400


async def test_nothing_is_retried_by_a_service_that_shuts_down(served: Served):
    first = await served.submit({"text": "a"})
    served.drain.begin()
    assert (await retry(served, first)).json()["code"] == "draining"


async def test_jobs_are_found_by_the_code_of_their_error(backend: Backend):
    async with serving(failing, backend=backend) as service:
        ids = {kind: await service.submit({"kind": kind}) for kind in ("rude", "polite")}
        async with working(service):
            for job_id in ids.values():
                await ended(service, job_id)
        for code, kind in (("step_failed", "rude"), ("document_not_found", "polite")):
            page = (await service.http.get("/jobs", params={"status": "failed", "code": code})).json()
            assert (page["total"], [job["job_id"] for job in page["jobs"]]) == (1, [ids[kind]])
        assert (await service.http.get("/jobs", params={"code": "worker_lost"})).json()["total"] == 0
        assert (await service.http.get("/jobs", params={"code": "x" * 101})).status_code == 422
