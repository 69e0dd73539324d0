"""``POST /invoke/batch``: many jobs in one request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.api.away import AwayStore
from tests.api.harness import Served, serving
from tests.api.pipelines import anything, shout
from tests.api.worker import working

from pipeserve.runtime.memory import MemoryStore
from pipeserve_api.schemas import MAX_BATCH
from pipeserve_api.services import Backend

KEY = {"Idempotency-Key": "batch-1"}


@pytest.fixture
async def served(backend: Backend) -> AsyncIterator[Served]:
    async with serving(shout, backend=backend) as service:
        yield service


async def batch(service: Served, *items: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    return await service.http.post("/invoke/batch", json={"items": items}, headers=headers)


def item(text: Any, **options: Any) -> dict[str, Any]:
    return {"parameters": {"text": text}, **options}


async def test_every_item_becomes_a_job(served: Served):
    answer = await batch(served, *(item(f"t{number}", labels={"n": str(number)}) for number in range(50)))
    assert answer.status_code == 202
    jobs = answer.json()["jobs"]
    assert [(job["index"], job["status"], job["queue_position"]) for job in jobs] == [
        (number, "pending", number) for number in range(50)
    ]
    assert jobs[3]["links"]["self"] == f"/jobs/{jobs[3]['job_id']}"
    async with working(served):
        ended = [(await served.http.get(f"/jobs/{job['job_id']}", params={"wait": 5})).json() for job in jobs]
    assert [job["outputs"]["loud"] for job in ended] == [f"T{number}!" for number in range(50)]
    assert ended[7]["labels"] == {"n": "7"}


async def test_a_wrong_item_does_not_sink_the_others(served: Served):
    items = [item("a"), item(5), "no object", item("b", taps=["upper.shouted"]), item("c", colour="red"), item("d")]
    answer = await batch(served, *items)
    assert answer.status_code == 202
    jobs = answer.json()["jobs"]
    assert [job["index"] for job in jobs] == list(range(6))
    assert ["job_id" in job for job in jobs] == [True, False, False, False, False, True]
    for job, name in zip(jobs[1:5], ["text", "body", "taps", "colour"], strict=True):
        assert (job["error"]["code"], job["error"]["status"]) == ("invalid_parameters", 422)
        assert job["error"]["errors"][0]["name"] == name
        assert job["error"]["instance"] == "/invoke/batch"
    assert (await served.http.get("/jobs")).json()["total"] == 2


async def test_items_may_say_what_a_call_may(served: Served):
    items = [item("a", priority=-5), item("b", priority=5, run_name="urgent"), item("c", run_at="2999-01-01T00:00:00Z")]
    items += [item("d", expires_in=60, timeout=3), item("e", webhook={"url": "https://example.com"})]
    *jobs, refused = (await batch(served, *items)).json()["jobs"]
    assert refused["error"]["errors"][0]["name"] == "webhook"
    shown = [(await served.http.get(f"/jobs/{job['job_id']}")).json() for job in jobs]
    assert [job["queue_position"] for job in shown] == [2, 0, None, 1]
    assert shown[1]["run_name"] == "urgent"


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({}, "items"),
        ({"items": []}, "items"),
        ({"items": {"parameters": {}}}, "items"),
        ({"items": [{}] * (MAX_BATCH + 1)}, "items"),
        ({"items": [{}], "mode": "sync"}, "mode"),
        ([{}], "body"),
    ],
)
async def test_a_batch_that_is_none_is_422(body: Any, name: str):
    async with serving(shout) as service:
        answer = await service.http.post("/invoke/batch", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["name"]) == (422, name)


@pytest.mark.parametrize("body", [b"[", b'{"items": [{"parameters": {"value": 1e400}}]}'])
async def test_a_body_that_is_no_json_is_400(body: bytes):
    async with serving(anything) as service:
        assert (await service.http.post("/invoke/batch", content=body)).json()["code"] == "bad_request"


async def test_items_reach_their_jobs_as_they_were_sent(backend: Backend):
    sent = b'{"value":[%d,0.1,1.0]}' % (2**70 + 1)
    async with serving(anything, backend=backend) as service:
        answer = await service.http.post("/invoke/batch", content=b'{"items":[{"parameters":%b}]}' % sent)
        assert answer.status_code == 202
        (claim,) = await service.store.ledger.claim("w", 1)
        assert claim.parameters == sent


async def test_what_finds_room_is_accepted():
    async with serving(shout, backend=MemoryStore(max_queue_size=2)) as service:
        answer = await batch(service, item("a"), item("b"), item("c"))
        assert answer.status_code == 202
        assert [job.get("error", {}).get("code") for job in answer.json()["jobs"]] == [None, None, "queue_full"]
        refused = await batch(service, item("d"), item("e"))
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert [job["error"]["code"] for job in refused.json()["jobs"]] == ["queue_full"] * 2


async def test_a_batch_of_wrong_items_is_the_first_ones_problem(served: Served):
    answer = await batch(served, item(1), item("a", colour="red"))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")
    assert [job["error"]["errors"][0]["name"] for job in answer.json()["jobs"]] == ["text", "colour"]


async def test_a_batch_under_the_same_key_is_the_same_jobs(served: Served):
    items = [item("a"), item("b"), item(5)]
    first, again = await batch(served, *items, headers=KEY), await batch(served, *items, headers=KEY)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    ids = [[job.get("job_id") for job in answer.json()["jobs"]] for answer in (first, again)]
    assert ids[0] == ids[1]
    assert [job.get("replayed") for job in again.json()["jobs"]] == [True, True, None]
    assert (await served.http.get("/jobs")).json()["total"] == 2


async def test_equal_items_under_one_key_are_jobs_of_their_own(served: Served):
    jobs = (await batch(served, item("a"), item("a"), headers=KEY)).json()["jobs"]
    assert len({job["job_id"] for job in jobs}) == 2
    single = await served.invoke({"text": "a"}, mode="async", headers=KEY)
    assert single.json()["job_id"] not in {job["job_id"] for job in jobs}


async def test_an_item_that_is_another_now_is_a_mismatch_and_a_new_one_is_accepted(served: Served):
    await batch(served, item("a"), item("b"), headers=KEY)
    answer = await batch(served, item("a"), item("B"), item("c"), headers=KEY)
    same, other, new = answer.json()["jobs"]
    assert (same["replayed"], other["error"]["code"]) == (True, "idempotency_mismatch")
    assert "replayed" not in new
    assert "idempotency-replayed" not in answer.headers


async def test_callers_items_wait_in_their_lane(backend: Backend):
    async with serving(shout, backend=backend, service={"auth_key": "ann,ben"}) as service:
        await batch(service, *(item("a") for _ in range(20)), headers={"X-API-Key": "ann"})
        (job,) = (await batch(service, item("b"), headers={"X-API-Key": "ben"})).json()["jobs"]
        assert job["queue_position"] <= 1


async def test_a_batch_needs_the_store():
    async with serving(shout, backend=AwayStore()) as service:
        answer = await batch(service, item("a"))
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")


async def test_nothing_is_taken_by_a_service_that_shuts_down(served: Served):
    served.drain.begin()
    assert (await batch(served, item("a"))).json()["code"] == "draining"


async def test_get_is_405():
    async with serving(shout) as service:
        assert (await service.http.get("/invoke/batch")).status_code == 405
