"""Which web pages may use the service through a browser; and what every answer tells browsers."""

from __future__ import annotations

import logging

import pytest
from tests.api.harness import Served, serving
from tests.api.pipelines import shout
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from pipeserve.errors import ConfigurationError
from pipeserve_api.origins import read_origins

EVIL = "https://evil.example"
APP = "https://app.example"


async def post(served: Served, headers: dict[str, str]) -> int:
    return (await served.invoke({"text": "a"}, headers=headers)).status_code


async def opens(served: Served, origin: str | None) -> bool:
    sent = None if origin is None else Origin(origin)
    try:
        async with connect(served.url.replace("http", "ws") + "/stream", origin=sent):
            return True
    except InvalidStatus as refused:
        return refused.response.status_code != 403


async def test_a_foreign_page_can_neither_call_nor_open_a_socket() -> None:
    async with serving(shout) as served:
        near = (served.url + ".evil.example", "http://127.0.0.1:1", "http://localhost")
        for origin in (EVIL, *near, "null", "x", "http://[:", "http://127.0.0.1:x"):
            answer = await served.invoke({"text": "a"}, headers={"Origin": origin})
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), origin
            assert not await opens(served, origin), origin
        assert (await served.http.get("/metrics")).json()["total_executions"] == 0


async def test_its_own_pages_and_programs_can() -> None:
    async with serving(shout) as served:
        own = served.url
        assert await post(served, {"Origin": own}) == 200
        assert await post(served, {"Origin": own.replace("http:", "https:"), "Host": own.split("//")[1]}) == 200
        assert await post(served, {}) == 200
        assert await opens(served, own)
        assert await opens(served, None)


async def test_an_allowed_page_can_and_may_read_the_answer() -> None:
    async with serving(shout, service={"allowed_origins": f"{APP}, https://other.example", "auth_key": "k"}) as served:
        asked = {"Origin": APP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
        preflight = await served.http.options("/invoke", headers=asked)
        assert preflight.status_code == 200, "a preflight has no key"
        assert preflight.headers["access-control-allow-origin"] == APP
        answer = await served.invoke({"text": "a"}, headers={"Origin": APP, "X-API-Key": "k"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == APP
        assert "access-control-allow-credentials" not in answer.headers
        assert "Location" in answer.headers["access-control-expose-headers"]
        assert await post(served, {"Origin": EVIL, "X-API-Key": "k"}) == 403
        refused = await served.invoke({"text": "a"}, headers={"Origin": APP})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, APP)


async def test_without_allowed_origins_no_answer_is_for_other_pages() -> None:
    async with serving(shout) as served:
        answer = await served.http.get("/info", headers={"Origin": EVIL})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8001", 200),
        ("127.0.0.1", 200),
        ("[::1]:8001", 200),
        ("api:8001", 200),
        ("tool.localhost", 200),
        ("evil.example:8001", 403),
        ("127.0.0.1.evil.example", 403),
        ("[evil", 200),
    ],
)
async def test_a_name_that_anybody_can_have_made_lead_here_is_refused_where_no_key_is_needed(
    host: str, status: int
) -> None:
    async with serving(shout) as served:
        assert (await served.http.get("/jobs", headers={"Host": host})).status_code == status
    async with serving(shout, service={"auth_key": "k"}) as served:
        assert (await served.http.get("/jobs", headers={"Host": host, "X-API-Key": "k"})).status_code == 200


async def test_every_answer_tells_browsers_to_be_careful() -> None:
    async with serving(shout) as served:
        job_id = (await served.invoke({"text": "a"})).json()["job_id"]
        for path in ("/info", "/never", f"/jobs/{job_id}", f"/stream/{job_id}", "/docs", "/"):
            headers = (await served.http.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff", path
            assert headers["referrer-policy"] == "no-referrer", path
            assert headers["x-frame-options"] == "SAMEORIGIN", path


async def test_a_slash_too_many_does_not_repeat_a_token_in_a_redirect() -> None:
    async with serving(shout, service={"auth_key": "k"}) as served:
        answer = await served.invoke({"text": "a"}, headers={"X-API-Key": "k"})
        job_id = answer.json()["job_id"]
        token = (await served.http.post(f"/jobs/{job_id}/token", headers={"X-API-Key": "k"})).json()["token"]
        answer = await served.http.get(f"/jobs/{job_id}/", params={"token": token})
        assert answer.status_code == 404
        assert token not in str(answer.headers)


@pytest.mark.parametrize("wrong", ["60", True, [1]])
async def test_a_tokens_time_is_a_number(wrong: object) -> None:
    async with serving(shout) as served:
        job_id = (await served.invoke({"text": "a"})).json()["job_id"]
        answer = await served.http.post(f"/jobs/{job_id}/token", json={"expires_in": wrong})
        assert answer.status_code == 422, answer.text


async def test_a_refused_handshake_is_no_error_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(shout, service={"auth_key": "k"}) as served:
        for _ in range(3):
            with pytest.raises(InvalidStatus) as refused:
                await connect(served.url.replace("http", "ws") + "/stream")
            assert refused.value.response.status_code == 401
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("wrong", ["app.example", "ftp://app.example", "https://app.example/path", "https://"])
def test_what_is_no_origin_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="PIPESERVE_ALLOWED_ORIGINS"):
        read_origins(f"{APP},{wrong}")
