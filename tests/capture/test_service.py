"""The same in a service as it is run: its processes, their logs, and workers beside the API process."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.capture.masked import PARAMETERS as SECRET_PARAMETERS
from tests.capture.planted import MARKS, PARAMETERS
from tests.capture.test_masks import found
from tests.service import ServeFixture, Service

pytestmark = pytest.mark.e2e


def told(service: Service, parameters: dict[str, Any]) -> bytes:
    """What the routes tell of a synchronous and of a queued run, and all that the processes have written."""
    with httpx.Client(base_url=service.url, timeout=20) as http:
        jobs: list[str] = []
        for mode in ("sync", "async"):
            answer = http.post("/invoke", json={"parameters": parameters}, params={"mode": mode})
            assert answer.status_code in (200, 202), answer.text
            jobs.append(answer.json()["job_id"])
        for job_id in jobs:
            assert http.get(f"/jobs/{job_id}", params={"wait": 15}).json()["status"] == "completed"
        texts: list[str] = [http.get("/info").text]
        for path, operations in http.get("/openapi.json").json()["paths"].items():
            if "get" in operations and "{index}" not in path and "{name}" not in path and "/result" not in path:
                texts += [http.get(path.replace("{job_id}", job_id)).text for job_id in jobs]
    return "\n".join([*texts, service.log]).encode()


def test_what_is_switched_off_is_told_nowhere(serve: ServeFixture) -> None:
    with serve("tests/capture/planted.py:quiet", ZENML_LOG_LEVEL="debug") as service:
        text = told(service, PARAMETERS)
    assert [mark for marks in MARKS.values() for mark in marks.values() if mark.encode() in text] == []


def test_a_secret_is_told_nowhere(serve: ServeFixture) -> None:
    with serve("tests/capture/masked.py:careful", ZENML_LOG_LEVEL="debug") as service:
        text = told(service, SECRET_PARAMETERS)
    assert found(text) == set()
    assert b"printed ***" in text
