"""Health, info, metrics, status, and the landing page."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tests.api.away import AwayStore
from tests.api.harness import Served, serving, wait_until
from tests.api.pipelines import failing, gated, secretive, shout
from tests.api.worker import working


@pytest.fixture
async def served():
    async with serving(shout) as service:
        yield service


@pytest.fixture
async def away():
    async with serving(shout, backend=AwayStore()) as service:
        yield service


# --- health


async def test_a_healthy_service_says_so(served: Served):
    answer = await served.http.get("/health")
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "healthy"
    assert body["deployment_id"] == served.services.deployment.id
    assert body["pipeline_name"] == "shout"
    assert body["uptime"] >= 0
    assert body["last_execution"] is None
    assert (await served.http.get("/health/live")).status_code == 200
    assert (await served.http.get("/health/ready")).status_code == 200


async def test_health_tells_when_the_last_run_ended(served: Served):
    await served.invoke({"text": "a"})

    async def told() -> bool:
        return (await served.http.get("/health")).json()["last_execution"] is not None

    await wait_until(told, "the run is counted")


async def test_a_service_whose_store_is_away_is_alive_but_not_ready(away: Served):
    assert (await away.http.get("/health/live")).status_code == 200
    ready = await away.http.get("/health/ready")
    assert ready.status_code == 503
    assert ready.headers["content-type"] == "application/problem+json"
    assert ready.json()["code"] == "store_unavailable"
    assert "redis://nowhere" in ready.json()["detail"]
    health = await away.http.get("/health")
    assert health.status_code == 503
    assert health.json()["status"] == "unhealthy"
    assert "redis://nowhere" in health.json()["problems"][0]


async def test_a_service_whose_store_is_unfit_says_what_is_wrong():
    faults = ["maxmemory-policy is allkeys-lru.", "appendonly is off."]
    async with serving(shout, backend=AwayStore(faults)) as service:
        answer = await service.http.get("/health/ready")
        assert answer.status_code == 503
        assert [error["detail"] for error in answer.json()["errors"]] == faults
        assert "maxmemory-policy" in answer.json()["detail"]


async def test_a_service_that_drains_is_not_ready(served: Served):
    served.drain.begin()
    answer = await served.http.get("/health/ready")
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")


# --- while the store is away


async def test_synchronous_calls_go_on_without_the_store(away: Served):
    answer = await away.invoke({"text": "a"})
    assert answer.status_code == 200
    assert answer.json()["outputs"]["loud"] == "A!"


async def test_a_long_call_without_the_store_is_answered_when_it_ends():
    held, gate = gated()
    async with serving(held, backend=AwayStore()) as service:
        call = asyncio.create_task(service.invoke({"text": "late"}, headers={"Prefer": "wait=0.01"}))
        await wait_until(gate.entered.is_set, "the run is under way")
        gate.opened.set()
        answer = await call
        assert answer.status_code == 200
        assert answer.json()["outputs"] == {"output": "late"}


async def test_an_async_call_without_the_store_is_503_with_retry_after(away: Served):
    answer = await away.invoke({"text": "a"}, mode="async")
    assert answer.status_code == 503
    assert answer.json()["code"] == "store_unavailable"
    assert int(answer.headers["retry-after"]) >= 1


async def test_jobs_without_the_store_are_503(away: Served):
    for path in ("/jobs", "/jobs/01890000-0000-7000-8000-000000000000", "/stream/01890000-0000-7000-8000-000000000000"):
        answer = await away.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")


async def test_metrics_and_status_answer_without_the_store(away: Served):
    body = (await away.http.get("/metrics")).json()
    assert body["store_available"] is False
    assert body["queue_depth"] is None
    text = (await away.http.get("/metrics?format=prometheus")).text
    assert 'pipeserve_store_available{pipeline="shout",process=' in text
    assert (await away.http.get("/status")).json()["status"] == "store_unavailable"


# --- info, metrics, status


async def test_info_describes_the_pipeline_and_its_deployment(served: Served):
    body = (await served.http.get("/info")).json()
    assert body["pipeline"]["name"] == "shout"
    assert [step["name"] for step in body["pipeline"]["steps"]] == ["upper", "length"]
    assert body["pipeline"]["steps"][1]["upstream"] == ["upper"]
    assert "text" in body["pipeline"]["input_schema"]["properties"]
    assert set(body["pipeline"]["output_schema"]["properties"]) == {"loud", "length"}
    deployment = served.services.deployment
    assert body["deployment"]["id"] == deployment.id
    assert body["deployment"]["fingerprint"] == deployment.fingerprint
    assert body["deployment"]["capture"]["memory_only"] is False
    assert body["deployment"]["created_at"].endswith("Z")
    assert body["version"]


async def test_metrics_count_the_whole_service():
    async with serving(failing) as service, working(service):
        await service.submit({"kind": "rude"})
        await service.invoke({"kind": "rude"})

        async def counted() -> bool:
            return (await service.http.get("/metrics")).json()["failed_executions"] == 2

        await wait_until(counted, "both runs are counted")
        body = (await service.http.get("/metrics")).json()
        assert (body["total_executions"], body["successful_executions"], body["success_rate"]) == (2, 0, 0.0)
        assert body["store_available"] is True
        assert body["jobs_by_status"]["failed"] == 2
        assert body["queue_depth"] == 0
        assert set(body["cache"]) == {"hits", "misses", "hit_rate", "saved_seconds", "entries", "bytes"}
        assert set(body["publisher"]) == {"queued", "processed", "failed_total", "dropped", "queue_depth", "breaker"}
        assert set(body["latency"]) == {"sync", "async", "pickup", "step"}
        assert set(body["latency"]["sync"]) == {"p50", "p95", "p99"}


async def test_metrics_tell_how_long_runs_and_each_step_take(served: Served):
    body = (await served.http.get("/metrics")).json()
    assert body["durations"] == {"run": {"p50": None, "p95": None, "p99": None}, "steps": {}}
    assert (body["fenced_writes"], body["drain_rate"]) == (0, None)
    await served.invoke({"text": "a"})

    async def counted() -> bool:
        return (await served.http.get("/metrics")).json()["successful_executions"] == 1

    await wait_until(counted, "the run is counted")
    body = (await served.http.get("/metrics")).json()
    assert body["durations"]["run"]["p50"] > 0
    assert set(body["durations"]["steps"]) == {"upper", "length"}
    assert set(body["latency"]) == {"sync", "async", "pickup", "step"}
    families = {
        family.name: family for family in parse_text((await served.http.get("/metrics?format=prometheus")).text)
    }
    steps = families["pipeserve_step_duration_seconds"].samples
    assert {sample.labels["step"] for sample in steps} == {"upper", "length"}
    assert [sample.value for sample in steps if sample.name.endswith("_count")] == [1, 1]
    [seconds] = [s.value for s in families["pipeserve_run_duration_seconds"].samples if s.name.endswith("_sum")]
    assert seconds == pytest.approx(body["durations"]["run"]["p50"], rel=0.06)


async def test_metrics_tell_how_fast_workers_take_jobs():
    async with serving(shout) as service:
        for _ in range(3):
            await service.submit({"text": "a"})
        await service.store.ledger.claim("a-worker", 3)
        assert (await service.http.get("/metrics")).json()["drain_rate"] > 0


async def test_memory_only_runs_are_counted_here():
    async with serving(secretive) as service:
        await service.invoke({"text": "a"})
        body = (await service.http.get("/metrics")).json()
        assert (body["total_executions"], body["success_rate"]) == (1, 1.0)
        assert body["average_execution_time"] > 0
        assert (await service.http.get("/health")).json()["last_execution"]


@pytest.mark.parametrize(
    ("accept", "query", "media_type"),
    [
        ("text/plain", "", "text/plain"),
        ("*/*", "?format=prometheus", "text/plain"),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5,*/*;q=0.1", "", "application/openmetrics-text"),
    ],
)
async def test_metrics_speak_prometheus(served: Served, accept: str, query: str, media_type: str):
    await served.invoke({"text": "a"})
    await served.submit({"text": "a"})
    answer = await served.http.get(f"/metrics{query}", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith(media_type)
    parse = parse_openmetrics if media_type.startswith("application") else parse_text
    families = {family.name: family for family in parse(answer.text)}
    assert families["pipeserve_queue_depth"].samples[0].value == 1
    assert families["pipeserve_queue_depth"].samples[0].labels == {"pipeline": "shout"}
    assert "pipeserve_executions" in families
    assert "pipeserve_call_duration_seconds" in families


async def test_metrics_are_json_unless_asked_otherwise(served: Served):
    for headers in ({}, {"Accept": "application/json"}, {"Accept": "text/html,*/*;q=0.8"}):
        answer = await served.http.get("/metrics", headers=headers)
        assert answer.headers["content-type"] == "application/json"
    assert (await served.http.get("/metrics?format=json", headers={"Accept": "text/plain"})).json()
    assert (await served.http.get("/metrics?format=xml")).status_code == 422


async def test_status_shows_the_last_drill(served: Served):
    assert (await served.http.get("/status")).json()["last_drill"] is None
    spread = {"count": 200, "p50": 0.02, "p95": 0.4, "max": None}
    report = {"finished_at": "2026-01-31T12:00:00Z", "seconds": 600.0, "jobs": 9000, "kills": {"worker": 200}}
    report |= {"lost": 0, "doubled": 0, "violations": 0, "statuses": {"completed": 9000}, "worker_lost": 1, "seed": 7}
    report |= {"recovery": spread, "cancel": spread, "versions": {"python": "3.14"}, "machine": {}}
    assert (await served.http.put("/status/drill", json=report)).status_code == 204
    assert (await served.http.get("/status")).json()["last_drill"] == report


@pytest.mark.parametrize("wrong", [{"lost": -1}, {"lost": None}, {"note": "x"}, {"kills": {"w" * 51: 1}}])
async def test_a_drills_report_that_is_none_is_refused(served: Served, wrong: dict[str, object]):
    spread = {"count": 0}
    report = {"finished_at": "2026-01-31T12:00:00Z", "seconds": 1, "jobs": 0, "kills": {}, "lost": 0, "doubled": 0}
    report |= {"violations": 0, "recovery": spread, "cancel": spread}
    answer = await served.http.put("/status/drill", json=report | wrong)
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_parameters"
    assert (await served.http.get("/status")).json()["last_drill"] is None


async def test_status_shows_the_configuration_without_its_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIPESERVE_REDIS_URL", "redis://user:hunter2@example.test:6379/0")
    async with serving(shout, service={"auth_key": "topsecret"}) as service:
        answer = await service.http.get("/status", headers={"X-API-Key": "topsecret"})
        body = answer.json()
        assert "topsecret" not in answer.text
        assert "hunter2" not in answer.text
        assert body["configuration"]["ZENML_SERVING_AUTH_KEY"] == "**********"
        assert body["configuration"]["PIPESERVE_REDIS_URL"] == "redis://**********@example.test:6379/0"
        assert body["configuration"]["PIPESERVE_SYNC_WAIT"] == 60
        assert body["service_name"] == "shout"
        assert body["status"] == "running"
        assert body["workers"] == []
        assert body["store"]["kind"]


async def test_the_landing_page_links_to_the_rest(served: Served):
    answer = await served.http.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    for path in ("/docs", "/info", "/jobs"):
        assert f'href="{path}"' in answer.text
        assert (await served.http.get(path)).status_code == 200


# --- keys


@pytest.fixture
async def locked():
    async with serving(shout, service={"auth_key": "k3y"}) as service:
        yield service


@pytest.mark.parametrize("path", ["/", "/info", "/jobs", "/metrics", "/status", "/docs", "/openapi.json", "/healthy"])
async def test_every_route_needs_the_key(locked: Served, path: str):
    answer = await locked.http.get(path)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["code"] == "unauthorized"


@pytest.mark.parametrize(
    "headers", [{"Authorization": "Bearer k3y"}, {"X-API-Key": "k3y"}, {"authorization": "bearer k3y"}]
)
async def test_the_key_opens(locked: Served, headers: dict[str, str]):
    assert (await locked.invoke({"text": "a"}, headers=headers)).status_code == 200
    assert (await locked.http.get("/docs", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Authorization": "Bearer k3"}, {"X-API-Key": "\xe9"}, {"Authorization": "Basic k3y"}]
)
async def test_another_key_does_not_open(locked: Served, headers: dict[str, str]):
    encoded = httpx.Headers(headers, encoding="latin-1")
    assert (await locked.http.post("/invoke", json={}, headers=encoded)).status_code == 401


async def test_probes_need_no_key(locked: Served):
    for path in ("/health", "/health/live", "/health/ready"):
        assert (await locked.http.get(path)).status_code == 200


async def test_a_websocket_handshake_needs_the_key(locked: Served):
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    answer: httpx.Response = await locked.http.get("/stream", headers=headers)
    assert answer.status_code == 401
