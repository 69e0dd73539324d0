"""Each setting with a secret has one, the log says all it can, and nothing that comes out has any of them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.service import ROOT, ServeFixture, free_port
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

KEY = "key-secret-7f3a91c5e2d84b06a1"
LOGIN = "login-secret-7f3a91c5e2d84b06a1"
SIGNING = "signing-secret-7f3a91c5e2d84b06a1"
SENDING = "whsec_" + base64.b64encode(b"sending-secret-7f3a91c5e2d84b06a1").decode()
TRACES = "traces-secret-7f3a91c5e2d84b06a1"
REDIS = "redis-secret-7f3a91c5e2d84b06a1"
PLANTED = (KEY, LOGIN, SIGNING, SENDING, TRACES, REDIS)
PIPELINE = """
from pipeserve import pipeline, step

@step
def work(password: str, fail: bool) -> int:
    if fail:
        raise RuntimeError("it broke")
    return len(password)

@pipeline
def guarded(password: str = "", fail: bool = False):
    return work(password, fail)
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    path = tmp_path / "guarded.py"
    path.write_text(PIPELINE)
    return f"{path}:guarded"


def test_what_a_service_says_has_no_secret_of_its_settings(serve: ServeFixture, target: str) -> None:
    environment = {
        "ZENML_SERVING_AUTH_KEY": KEY,
        "PIPESERVE_TOKEN_SECRET": SIGNING,
        "PIPESERVE_WEBHOOK_SECRET": SENDING,
        "PIPESERVE_WEBHOOK_ALLOW": "127.0.0.1",
        "PIPESERVE_ACCESS_LOG": "true",
        "PIPESERVE_EXPOSE_TRACEBACKS": "true",
        "ZENML_LOG_LEVEL": "debug",
        # Nobody listens there: that the spans can't be sent is in the log as well.
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://user:{LOGIN}@127.0.0.1:{free_port()}",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={TRACES}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    with serve(target, workers=1, **environment) as service:
        said = list(answers(service.url))
        tokens = [answer.json()["token"] for answer in said if answer.url.path.endswith("/token")]
    log = service.log  # to its end
    assert len(tokens) == 1
    assert "level=debug" in log
    assert "event=request" in log
    for secret in (*PLANTED, *tokens):
        assert secret not in log, [line for line in log.splitlines() if secret in line][:3]
    for answer in said:
        shown = answer.text + json.dumps(dict(answer.headers)) if not answer.url.path.endswith("/token") else ""
        assert not [secret for secret in (*PLANTED, *tokens) if secret in shown], answer.url.path


def answers(url: str) -> Iterator[httpx.Response]:
    """Of every kind of request, with the key and without."""
    yield from (httpx.get(url + path) for path in ("/", "/jobs", "/health", "/health/ready", "/nowhere"))
    yield httpx.get(f"{url}/jobs", headers={"Authorization": f"Bearer {KEY}x"})
    yield httpx.get(f"{url}/jobs", headers={"X-API-Key": KEY[:-1]})
    yield httpx.get(f"{url}/jobs", params={"token": KEY})
    with pytest.raises(InvalidStatus), connect(f"{url.replace('http', 'ws')}/stream?token={KEY}"):
        pass
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=20) as client:
        for path in ("/status", "/metrics", "/metrics?format=prometheus", "/info", "/openapi.json", "/asyncapi.json"):
            yield client.get(path)
        yield client.post("/invoke", json={"parameters": {"fail": True}})
        yield client.post("/invoke", content=b"{")
        yield client.post("/invoke", json={"parameters": {"unknown": 1}})
        hooked = client.post("/invoke?mode=async", json={"webhook": {"url": "http://127.0.0.1:9/hook"}})
        assert hooked.status_code == 202
        yield hooked
        accepted = client.post("/invoke?mode=async", json={"parameters": {"fail": True}})
        yield accepted
        job_id = accepted.json()["job_id"]
        yield client.get(f"/jobs/{job_id}", params={"wait": 20})
        for part in ("", "/result", "/events", "/logs", "/explain"):
            yield client.get(f"/jobs/{job_id}{part}")
        token = client.post(f"/jobs/{job_id}/token")
        yield token
        secret = token.json()["token"]
        yield httpx.get(f"{url}/stream/{job_id}", params={"token": secret})
        yield httpx.get(f"{url}/jobs/{job_id}", params={"token": secret + "x"})
        yield httpx.get(f"{url}/jobs/", params={"token": secret})


@pytest.mark.parametrize("part", ["pipeserve_api", "pipeserve_worker"])
def test_a_store_that_is_not_there_is_named_without_its_password(part: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    url = f"redis://user:{REDIS}@127.0.0.1:{free_port()}/0"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", part],
            cwd=ROOT,
            env={
                **os.environ,
                "PIPESERVE_REDIS_URL": url,
                "ZENML_PIPELINE_DEPLOYMENT_ID": "any",
                "ZENML_SERVICE_PORT": str(free_port()),
                "ZENML_LOG_LEVEL": "debug",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 30
        while "127.0.0.1" not in log.read_text() and process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    said = log.read_text()
    assert said
    assert REDIS not in said
