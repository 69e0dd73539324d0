"""What a request says of its job (its place in the queue, its time, its webhook), and a queue without room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from tests.api.away import AwayStore
from tests.api.harness import Served, serving, wait_until
from tests.api.pipelines import gated, secretive, shout
from tests.api.worker import working

from pipeserve.errors import ConfigurationError, QueueFullError
from pipeserve.runtime.memory import MemoryStore
from pipeserve.runtime.ports import Admission, NewJob
from pipeserve_api.services import Backend

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WEBHOOKS = {"secret": SECRET, "allow": "hooks.test", "timeout": 0.1}
RECEIVER = "http://hooks.test:9/jobs"


@pytest.fixture
async def served(backend: Backend) -> AsyncIterator[Served]:
    async with serving(shout, backend=backend) as service:
        yield service


@pytest.fixture
async def hooked(backend: Backend) -> AsyncIterator[Served]:
    """A service that sends webhooks."""
    async with serving(shout, backend=backend, webhooks=WEBHOOKS) as service:
        yield service


def named(answer: httpx.Response) -> set[str]:
    """What a 422 says is wrong."""
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")
    return {error["name"] for error in answer.json()["errors"]}


def later(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def job_of(service: Served, job_id: str) -> dict[str, Any]:
    return (await service.http.get(f"/jobs/{job_id}")).json()


# --- priority


async def test_priority_counts_in_the_queue_and_stands_in_the_job(served: Served):
    plain = await served.submit({"text": "plain"})
    urgent = await served.submit({"text": "urgent"}, priority=10)
    patient = await served.submit({"text": "patient"}, priority=-10)
    places = [(await job_of(served, job_id))["queue_position"] for job_id in (urgent, plain, patient)]
    assert places == [0, 1, 2]
    assert (await job_of(served, patient))["priority"] == -10


@pytest.mark.parametrize("priority", [11, -11, 1.5, "high"])
async def test_a_priority_out_of_range_is_422(served: Served, priority: Any):
    assert named(await served.invoke({"text": "a"}, mode="async", priority=priority)) == {"priority"}


async def test_priority_is_accepted_where_nothing_waits(served: Served):
    answer = await served.invoke({"text": "a"}, priority=3)
    assert answer.status_code == 200
    assert (await job_of(served, answer.json()["job_id"]))["priority"] == 3


# --- run_at and expires_in


async def test_a_scheduled_job_has_no_place_in_the_queue_yet(served: Served):
    moment = later(3600)
    answer = await served.invoke({"text": "a"}, mode="async", run_at=moment)
    assert (answer.status_code, answer.json()["status"], answer.json()["queue_position"]) == (202, "pending", None)
    job = await job_of(served, answer.json()["job_id"])
    assert job["queue_position"] is None
    assert abs(datetime.fromisoformat(job["run_at"]) - datetime.fromisoformat(moment)) < timedelta(milliseconds=1)


async def test_a_scheduled_job_runs_once_it_is_due(served: Served):
    due = time.time() + 0.3
    job_id = await served.submit({"text": "a"}, run_at=later(0.3))
    async with working(served):
        job = (await served.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()
    assert job["status"] == "completed"
    assert datetime.fromisoformat(job["started_at"]).timestamp() >= due - 0.001


@pytest.mark.parametrize("moment", ["2001-01-31T12:00:00Z", "2001-01-31t12:00:00.5+02:00", "2001-01-31 12:00:00-05:00"])
async def test_a_time_that_has_passed_is_at_once_and_ahead_of_nobody(served: Served, moment: str):
    before = await served.submit({"text": "before"})
    answer = await served.invoke({"text": "a"}, mode="async", run_at=moment)
    assert answer.json()["queue_position"] == 1
    assert (await job_of(served, before))["queue_position"] == 0


@pytest.mark.parametrize("moment", ["2026-01-31T12:00:00", "2026-01-31", "tomorrow", 1_900_000_000, "1900000000", True])
async def test_a_time_that_is_not_rfc_3339_with_an_offset_is_422(served: Served, moment: Any):
    assert named(await served.invoke({"text": "a"}, mode="async", run_at=moment)) == {"run_at"}


@pytest.mark.parametrize("seconds", [0, -1, "soon", 1e12])
async def test_an_expiry_that_is_no_time_to_come_is_422(served: Served, seconds: Any):
    assert named(await served.invoke({"text": "a"}, mode="async", expires_in=seconds)) == {"expires_in"}


async def test_a_job_that_nobody_starts_in_time_expires(served: Served):
    job_id = await served.submit({"text": "a"}, expires_in=0.05)
    assert (await job_of(served, job_id))["expires_at"] is not None

    async def expired() -> bool:
        assert await served.store.ledger.claim("late", 0) == []
        return (await job_of(served, job_id))["status"] == "expired"

    await wait_until(expired, "the job has expired")
    answer = await served.http.get(f"/jobs/{job_id}/result")
    assert (answer.status_code, answer.json()["code"]) == (410, "expired")


async def test_a_job_that_would_expire_before_its_time_is_422(served: Served):
    answer = await served.invoke({"text": "a"}, mode="async", run_at=later(60), expires_in=30)
    assert named(answer) == {"expires_in"}
    assert (await served.invoke({"text": "a"}, mode="async", run_at=later(60), expires_in=90)).status_code == 202


@pytest.mark.parametrize("execution", ["inline", "queued"])
@pytest.mark.parametrize("terms", [{"run_at": "2001-01-31T12:00:00Z"}, {"expires_in": 5}])
async def test_who_waits_for_the_result_cannot_say_when_it_starts(execution: str, terms: dict[str, Any]):
    async with serving(shout, service={"sync_execution": execution}) as service:
        answer = await service.invoke({"text": "a"}, **terms)
        assert named(answer) == set(terms)
        assert "mode=async" in answer.json()["detail"]
        assert (await service.http.get("/jobs")).json()["total"] == 0


# --- lanes


async def test_tenants_take_turns(served: Served):
    for number in range(5):
        await served.submit({"text": f"{number}"}, labels={"tenant": "many"})
    answer = await served.invoke({"text": "first"}, mode="async", labels={"tenant": "few"})
    assert answer.json()["queue_position"] <= 1


async def test_callers_take_turns_where_no_tenant_is_named(backend: Backend):
    async with serving(shout, backend=backend, service={"auth_key": "ann,ben"}) as service:
        for number in range(5):
            await service.submit({"text": f"{number}"}, headers={"X-API-Key": "ann"})
        ben, ann = [
            await service.invoke({"text": "a"}, mode="async", headers={"X-API-Key": caller})
            for caller in ("ben", "ann")
        ]
        assert ben.json()["queue_position"] <= 1
        assert ann.json()["queue_position"] == 6


async def test_a_tenant_counts_more_than_the_caller(backend: Backend):
    async with serving(shout, backend=backend, service={"auth_key": "ann,ben"}) as service:
        for number in range(5):
            headers = {"X-API-Key": "ann" if number % 2 else "ben"}
            answer = await service.invoke({"text": "a"}, mode="async", headers=headers, labels={"tenant": "one"})
            assert answer.json()["queue_position"] == number


@pytest.mark.parametrize("tenant", ["x" * 65, "x" * 5000, "line\nbreak", "käse", ":{}*"])
async def test_any_tenant_is_a_lane(served: Served, tenant: str):
    job_id = await served.submit({"text": "a"}, labels={"tenant": tenant})
    await served.submit({"text": "b"}, labels={"tenant": tenant + "2"})
    async with working(served):
        job = (await served.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()
    assert (job["status"], job["labels"]) == ("completed", {"tenant": tenant})


# --- keys


async def test_each_of_several_keys_opens(backend: Backend):
    async with serving(shout, backend=backend, service={"auth_key": " old-key-1 , new-key-2,"}) as service:
        for key, status in (("old-key-1", 200), ("new-key-2", 200), ("old-key-1 , new-key-2", 401), (",", 401)):
            for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
                answer = await service.http.get("/status", headers=headers)
                assert answer.status_code == status, key
                assert status == 401 or answer.json()["configuration"]["ZENML_SERVING_AUTH_KEY"] == "**********"
                assert "old-key-1" not in answer.text


async def test_a_setting_without_any_key_in_it_opens_nothing():
    with pytest.raises(ConfigurationError, match="ZENML_SERVING_AUTH_KEY"):
        async with serving(shout, service={"auth_key": " , "}):
            pass


# --- webhooks


async def test_a_webhook_is_sent_the_jobs_end_unless_it_says_otherwise(hooked: Served):
    job_id = await hooked.submit({"text": "a"}, webhook={"url": RECEIVER})
    webhook = (await job_of(hooked, job_id))["webhook"]
    assert webhook["url"] == RECEIVER
    assert set(webhook["events"]) == {
        "pipeline_completed",
        "pipeline_failed",
        "pipeline_canceled",
        "pipeline_timed_out",
        "pipeline_expired",
    }


async def test_a_webhook_may_choose_its_events(hooked: Served):
    wanted = ["step_completed", "pipeline_completed", "step_completed"]
    job_id = await hooked.submit({"text": "a"}, webhook={"url": RECEIVER, "events": wanted})
    assert (await job_of(hooked, job_id))["webhook"]["events"] == ["step_completed", "pipeline_completed"]


@pytest.mark.parametrize(
    ("webhook", "name"),
    [
        ({"url": "ftp://hooks.test/"}, "webhook.url"),
        ({"url": "http://10.0.0.1/"}, "webhook.url"),
        ({"url": "not a url"}, "webhook.url"),
        ({"url": "https://hooks.test/" + "x" * 2048}, "webhook.url"),
        ({}, "webhook.url"),
        ({"url": RECEIVER, "events": []}, "webhook.events"),
        ({"url": RECEIVER, "events": ["done"]}, "webhook.events"),
        ({"url": RECEIVER, "secret": "x"}, "webhook.secret"),
        (RECEIVER, "webhook"),
    ],
)
@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_webhook_that_cannot_be_sent_is_422(webhook: Any, name: str, mode: str):
    async with serving(shout, webhooks=WEBHOOKS) as service:
        assert named(await service.invoke({"text": "a"}, mode=mode, webhook=webhook)) == {name}
        assert (await service.http.get("/jobs")).json()["total"] == 0


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_service_without_a_secret_takes_no_webhooks(served: Served, mode: str):
    answer = await served.invoke({"text": "a"}, mode=mode, webhook={"url": "https://example.com/"})
    assert named(answer) == {"webhook"}
    assert "PIPESERVE_WEBHOOK_SECRET" in answer.json()["detail"]


async def test_a_memory_only_call_with_a_webhook_is_kept(backend: Backend):
    async with serving(secretive, backend=backend, webhooks=WEBHOOKS) as service:
        answer = await service.invoke({"text": "a"}, webhook={"url": RECEIVER})
        assert answer.status_code == 200
        job_id = answer.json()["job_id"]
        job = (await service.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()
        assert (job["status"], job["parameters"], job["webhook"]["url"]) == ("completed", None, RECEIVER)
        assert (await service.invoke({"text": "a"})).status_code == 200
        assert (await service.http.get("/jobs")).json()["total"] == 1


async def test_a_call_with_a_webhook_needs_the_store():
    async with serving(shout, backend=AwayStore()) as service:
        assert (await service.invoke({"text": "a"})).status_code == 200
    async with serving(shout, backend=AwayStore(), webhooks=WEBHOOKS) as service:
        answer = await service.invoke({"text": "a"}, webhook={"url": RECEIVER})
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")


async def test_a_caller_who_leaves_cancels_its_run_and_its_webhook_is_told(backend: Backend):
    held, gate = gated()
    async with serving(held, backend=backend, webhooks=WEBHOOKS) as service:
        call = asyncio.create_task(service.invoke(webhook={"url": RECEIVER}))
        await wait_until(gate.entered.is_set, "the run is under way")
        (job,) = (await service.http.get("/jobs")).json()["jobs"]
        call.cancel()
        job = (await service.http.get(f"/jobs/{job['job_id']}", params={"wait": 5})).json()
        assert (job["status"], job["webhook"]["url"]) == ("canceled", RECEIVER)


# --- no room


class FullStore(MemoryStore):
    """A store whose queue is full; it says for how long."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self.ledger.submit = self._refuse

    async def _refuse(self, job: NewJob) -> Admission:
        raise QueueFullError(retry_after=self._seconds)


@pytest.mark.parametrize(("seconds", "told"), [(1.2, "2"), (30, "30"), (0.01, "1")])
async def test_a_full_queue_says_when_to_come_back(seconds: float, told: str):
    async with serving(shout, backend=FullStore(seconds)) as service:
        answer = await service.invoke({"text": "b"}, mode="async")
        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
        assert answer.headers["retry-after"] == told
