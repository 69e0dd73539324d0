"""``Secret`` and ``Redact``: what is masked is found in nothing that is told of a run, whichever way it tried."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from tests.capture.masked import MADE, PARAMETERS, PERSONAL, SECRETS, careful, careless
from tests.capture.places import places

pytestmark = pytest.mark.e2e  # each runs the service over an own store


def found(*texts: bytes) -> set[str]:
    """Which secrets stand in any of the texts, in any way of writing."""
    return {
        name
        for name, secret in SECRETS.items()
        for written in (secret, repr(secret)[1:-1], orjson.dumps(secret).decode()[1:-1], ascii(secret)[1:-1])
        if any(written.encode() in text for text in texts)
    }


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_what_is_not_masked_is_found(mode: str, store_url: str) -> None:
    async with places(careless, store_url) as around:
        job_id, _ = await around.call(PARAMETERS, mode=mode)
        everything = await around.everything(job_id)
    for place, text in everything.items():
        assert found(text) == set(SECRETS), place


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_secret_is_found_nowhere_and_a_redacted_value_in_the_result_alone(mode: str, store_url: str) -> None:
    async with places(careful, store_url) as around:
        job_id, answer = await around.call(PARAMETERS, mode=mode)
        everything = await around.everything(job_id)
        http = around.served.http
        job = (await http.get(f"/jobs/{job_id}")).json()
        result = (await http.get(f"/jobs/{job_id}/result")).json()
        logs = (await http.get(f"/jobs/{job_id}/logs")).json()["logs"]
    assert found(everything["store"]) == {"redacted"}  # for the result
    assert found(everything["routes"].replace(orjson.dumps(result), b"")) <= {"redacted"}
    assert found(everything["process"]) == set()
    assert b"KeyError: ***" in everything["process"].replace(b"'", b"")  # the traceback itself is there
    if mode == "sync":
        assert answer.json()["outputs"] == {"used": "used", "made": MADE, "person": PERSONAL}
    assert result["outputs"] == {"used": "used", "made": "***", "person": PERSONAL}
    assert job["outputs"] == {"used": "used", "made": "***", "person": "***"}
    assert job["parameters"] == {
        "token": "***",
        "pin": "***",
        "options": {"apiKey": "***", "logins": [{"name": "ann", "password": "***"}], "size": 2},
        "pydantic": "***",
        "short": "***",
        "personal": "***",
        "leak.extra": "***",
    }
    lines = [line["message"] for line in logs if line["step_name"] == "make"]
    assert "printed ***" in lines
    assert "in pieces ***" in lines


@pytest.mark.parametrize("fails", ["own words", "yes"])
@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_an_error_that_holds_a_secret_tells_it_to_nobody(mode: str, fails: str, store_url: str) -> None:
    async with places(careful, store_url, expose_tracebacks=True) as around:
        job_id, answer = await around.call({**PARAMETERS, "fails": fails}, mode=mode)
        everything = await around.everything(job_id)
        job = (await around.served.http.get(f"/jobs/{job_id}")).json()
    assert found(*everything.values(), answer.content) == set()
    assert job["status"] == "failed"
    assert "***" in job["error"]["detail"]
    if mode == "sync":
        assert answer.json()["detail"] == job["error"]["detail"]


async def test_a_redacted_value_is_answered_by_the_result_route_only(store_url: str) -> None:
    async with places(careful, store_url) as around:
        job_id, _ = await around.call(PARAMETERS, mode="async")
        http = around.served.http
        paths: dict[str, Any] = (await http.get("/openapi.json")).json()["paths"]
        shown = {
            path
            for path, operations in paths.items()
            if "get" in operations and "{job_id}" in path
            if PERSONAL in (await http.get(path.replace("{job_id}", job_id).replace("{index}", "1"))).text
        }
    assert shown == {"/jobs/{job_id}/result"}


async def test_a_refused_parameter_is_not_repeated(store_url: str) -> None:
    wrong = {**PARAMETERS, "pin": f"{PARAMETERS['token']}", "options": {"apiKey": ["nested-in-a-model-77"]}}
    async with places(careful, store_url) as around:
        answer = await around.served.invoke(wrong)
        assert answer.status_code == 422
        assert {error["name"] for error in answer.json()["errors"]} == {"pin", "options.apiKey"}
        assert found(answer.content, around.printed, await around.stored()) == set()
