"""``pipeserve serve`` with a collector, as an operator starts it: real API, real worker, OTLP over HTTP."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tests.service import Service, serve_target
from tests.tracing.collector import collecting
from tests.tracing.harness import trace_id, traceparent

TARGET = "tests/tracing/pipelines.py:three"


def eventually(predicate: Callable[[], object], description: str, *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, f"waited in vain until {description}"
        time.sleep(0.02)


def call(service: Service, number: int, **query: str) -> httpx.Response:
    body = {"parameters": {"word": "a"}}
    return httpx.post(f"{service.url}/invoke", json=body, params=query, headers=traceparent(number), timeout=30)


def environment(url: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "100"}


@pytest.mark.e2e
def test_a_collector_has_the_whole_way_of_a_call_and_of_a_job_and_the_log_their_ids(tmp_path: Path):
    with collecting() as collector:
        settings = environment(collector.url) | {"PIPESERVE_LOG_FORMAT": "json", "PIPESERVE_ACCESS_LOG": "true"}
        with serve_target(TARGET, tmp_path, workers=1, environment=settings) as service:
            assert call(service, 1).status_code == 200
            job_id = call(service, 2, mode="async").json()["job_id"]
            eventually(lambda: len(collector.named("step third")) == 2, "both calls were told of")
            eventually(lambda: len(collector.named("POST /invoke")) == 2, "both requests were told of")
            lines = [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]
        [run] = [span for span in collector.named("run three") if span.service == "pipeserve-worker"]
    assert {span.name for span in collector.spans} == {
        *("POST /invoke", "submit three", "run three"),
        *("step first", "step second", "step third"),
    }
    by_id = {span.span_id: span for span in collector.spans}
    [step] = [span for span in collector.named("step third") if span.parent_id == run.span_id]
    submit = by_id[run.parent_id]
    request = by_id[submit.parent_id]
    assert [request.name, submit.name, run.name] == ["POST /invoke", "submit three", "run three"]
    assert {span.trace_id for span in (request, submit, run, step)} == {trace_id(2)}
    assert request.service == submit.service == "pipeserve-api"
    assert run.attributes["pipeserve.job_id"] == job_id
    [ended] = [line for line in lines if line["event"] == "job ended"]
    assert (ended["job_id"], ended["attempt"], ended["trace_id"]) == (job_id, 1, trace_id(2))
    assert ended["span_id"] == run.span_id
    assert ended["deployment_id"] == run.attributes["pipeserve.deployment_id"]
    invoked = [line for line in lines if line["event"] == "invoked"]
    assert [line["trace_id"] for line in invoked] == [trace_id(1), trace_id(2)]
    accessed = [line for line in lines if line["event"] == "request" and line["path"] == "/invoke"]
    assert [line["trace_id"] for line in accessed] == [trace_id(1), trace_id(2)]
    assert [line["status"] for line in accessed] == [200, 202]


@pytest.mark.e2e
def test_spans_that_wait_when_the_service_ends_are_told(tmp_path: Path):
    with collecting() as collector:
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
        with serve_target(TARGET, tmp_path, workers=1, environment=settings) as service:
            assert call(service, 3).status_code == 200
            assert call(service, 4, mode="async", wait="20").status_code in (200, 202)
            eventually(lambda: "job ended" in service.log, "the job has ended")
            assert collector.spans == []
        assert {span.trace_id for span in collector.named("step third")} == {trace_id(3), trace_id(4)}


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["refuses", "hangs"])
def test_a_collector_that_is_away_or_hangs_fails_and_slows_nothing(tmp_path: Path, kind: str):
    hold = threading.Event()
    with collecting(hold=hold) as collector, socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
        unused.close()
        url = collector.url if kind == "hangs" else f"http://127.0.0.1:{port}"
        with serve_target(TARGET, tmp_path, workers=1, environment=environment(url)) as service:
            # The fixture's own end is bounded too: it waits ten seconds at most for the service to leave.
            for number in range(30):
                assert call(service, 10 + number).status_code == 200
            answer = call(service, 50, mode="async")
            assert answer.status_code == 202
            eventually(lambda: "job ended" in service.log, "the job has ended")
        hold.set()


@pytest.mark.e2e
def test_without_the_environment_nothing_of_it_is_loaded(tmp_path: Path):
    (tmp_path / "asks.py").write_text(
        "import sys\n\nfrom pipeserve import pipeline, step\n\n\n"
        "@step\ndef loaded() -> list[str]:\n    return sorted(sys.modules)\n\n\n"
        "@pipeline\ndef asks() -> list[str]:\n    return loaded()\n"
    )
    with serve_target(f"{tmp_path / 'asks.py'}:asks", tmp_path, workers=1, environment={}) as service:
        answer = httpx.post(f"{service.url}/invoke", json={"parameters": {}}, timeout=30)
        [in_api] = answer.json()["outputs"].values()
        queued = httpx.post(f"{service.url}/invoke?mode=async", json={"parameters": {}}, timeout=30).json()
        eventually(lambda: "job ended" in service.log, "the job has ended")
        job = httpx.get(f"{service.url}/jobs/{queued['job_id']}", timeout=30).json()
        [in_worker] = job["outputs"].values()
    # FastAPI itself imports OpenTelemetry's API.
    assert not [name for name in in_api if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
    assert not [name for name in in_worker if name.startswith("opentelemetry")]
    assert "pipeserve.telemetry.spans" not in {*in_api, *in_worker}
