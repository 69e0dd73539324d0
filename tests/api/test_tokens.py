"""Tokens: a browser reads one job with them, for a while, and does nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.harness import Served, serving
from tests.api.pipelines import shout
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from pipeserve.errors import ConfigurationError, UnauthorizedError
from pipeserve.jobs import new_job_id
from pipeserve_api.tokens import TokenSigner

KEY = {"Authorization": "Bearer key"}


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(shout, service={"auth_key": "key"}) as service:
        yield service


async def job_of(served: Served) -> str:
    answer = await served.invoke({"text": "a"}, mode="async", headers=KEY)
    return answer.json()["job_id"]


async def token_of(served: Served, job_id: str, **body: float) -> str:
    answer = await served.http.post(f"/jobs/{job_id}/token", headers=KEY, json=body or None)
    assert answer.status_code == 200, answer.text
    return answer.json()["token"]


async def test_a_token_reads_its_job(served: Served) -> None:
    job_id = await job_of(served)
    token = await token_of(served, job_id)
    for path in ("", "/events", "/logs", "/explain", "/visualizations", "/result"):
        answer = await served.http.get(f"/jobs/{job_id}{path}", params={"token": token})
        assert answer.status_code in (200, 202), (path, answer.text)
        assert (await served.http.get(f"/jobs/{job_id}{path}")).status_code == 401
    assert (await served.http.get(f"/jobs/{job_id.upper()}", params={"token": token})).status_code in (200, 404)
    bearer = {"Authorization": f"Bearer {token}"}
    assert (await served.http.get(f"/jobs/{job_id}", headers=bearer)).status_code == 200


async def test_a_token_opens_its_jobs_stream(served: Served) -> None:
    job_id = await job_of(served)
    token = await token_of(served, job_id)
    async with served.http.stream("GET", f"/stream/{job_id}", params={"token": token}) as stream:
        lines = stream.aiter_lines()
        assert await anext(lines) == "retry: 2000"


async def test_the_answer_says_what_the_token_opens_and_until_when(served: Served) -> None:
    job_id = await job_of(served)
    answer = await served.http.post(f"/jobs/{job_id}/token", headers=KEY, json={"expires_in": 60})
    said = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    left = datetime.fromisoformat(said["expires_at"]).timestamp() - datetime.now().timestamp()
    assert 30 < left <= 60
    for name in ("self", "events"):
        assert (await served.http.get(said["links"][name])).status_code == 200
    async with served.http.stream("GET", said["links"]["stream"]) as stream:
        assert stream.status_code == 200


async def test_a_token_does_nothing_but_read_its_job(served: Served) -> None:
    mine, other = await job_of(served), await job_of(served)
    token = await token_of(served, mine)
    refused = [
        ("GET", f"/jobs/{other}"),
        ("GET", f"/stream/{other}"),
        ("GET", "/jobs"),
        ("GET", "/status"),
        ("GET", f"/events?job={mine}&job={other}"),
        ("GET", "/events"),
        ("POST", f"/jobs/{mine}/cancel"),
        ("POST", f"/jobs/{mine}/retry"),
        ("POST", f"/jobs/{mine}/token"),
        ("PUT", f"/jobs/{mine}"),
        ("POST", "/invoke"),
    ]
    for method, url in refused:
        answer = await served.http.request(method, url, headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), (method, url)


async def test_a_key_counts_more_than_a_token(served: Served) -> None:
    mine, other = await job_of(served), await job_of(served)
    token = await token_of(served, mine)
    assert (await served.http.get(f"/jobs/{other}", params={"token": token}, headers=KEY)).status_code == 200


@pytest.mark.parametrize("token", ["", "pst_", "pst_a.b", "x" * 5000, "pst_é.é", "key", "%00", "pst_e30." + "A" * 43])
async def test_what_is_no_token_is_refused_as_a_missing_key_is(served: Served, token: str) -> None:
    job_id = await job_of(served)
    answer = await served.http.get(f"/jobs/{job_id}", params={"token": token})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.json()["instance"] == f"/jobs/{job_id}"


async def test_a_token_expires(served: Served) -> None:
    job_id = await job_of(served)
    old = TokenSigner(served.services.tokens.keys, served.services.deployment.id, clock=lambda: 1_700_000_000.0)
    answer = await served.http.get(f"/jobs/{job_id}", params={"token": old.sign(job_id, 60).text})
    assert answer.status_code == 401
    assert "expired" in answer.json()["detail"]


@pytest.mark.parametrize("body", [{"expires_in": 0}, {"expires_in": 604_801}, {"expires_in": "soon"}, {"until": 3}, []])
async def test_terms_that_make_no_sense_are_named(served: Served, body: object) -> None:
    job_id = await job_of(served)
    answer = await served.http.post(f"/jobs/{job_id}/token", headers=KEY, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")


async def test_there_is_no_token_for_a_job_that_is_unknown(served: Served) -> None:
    answer = await served.http.post(f"/jobs/{new_job_id()}/token", headers=KEY)
    assert answer.status_code == 404


async def test_secrets_rotate_without_a_gap_and_hold_at_every_replica() -> None:
    job_id = new_job_id()
    deployment = "d"
    first, both, second = (
        TokenSigner([key.encode() for key in keys], deployment) for keys in (["a"], ["b", "a"], ["b"])
    )
    old, new = first.sign(job_id, 60).text, both.sign(job_id, 60).text
    assert both.job_of(old) == both.job_of(new) == second.job_of(new) == first.job_of(old) == job_id
    for signer, token in ((first, new), (second, old), (TokenSigner([b"a"], "another"), old)):
        with pytest.raises(UnauthorizedError):
            signer.job_of(token)


async def test_the_secret_of_its_own_signs_where_there_is_one_and_is_never_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    own = {"auth_key": "key", "token_secret": "s3cret-1, s3cret-2"}
    async with serving(shout, service=own) as one, serving(shout, service=own | {"auth_key": "another"}) as two:
        job_id = await job_of(one)
        token = await token_of(one, job_id)
        ours = TokenSigner(one.services.tokens.keys, two.services.deployment.id).sign(job_id, 60).text
        assert two.services.tokens.job_of(ours) == job_id
        status = await one.http.get("/status", headers=KEY)
        assert status.json()["configuration"]["PIPESERVE_TOKEN_SECRET"] == "**********"
        refused = await one.http.get("/jobs", params={"token": token})
        # The client of this test logs its URLs; uvicorn's info, which has them too, is off in a service's process.
        logged = [record.getMessage() for record in caplog.records if record.name.startswith("pipeserve")]
        for text in (status.text, refused.text, *logged):
            assert "s3cret" not in text
            assert token not in text


async def test_a_secret_without_any_in_it_stops_the_service() -> None:
    with pytest.raises(ConfigurationError, match="PIPESERVE_TOKEN_SECRET"):
        async with serving(shout, service={"auth_key": "key", "token_secret": " , "}):
            pass


async def test_an_open_service_gives_tokens_and_needs_none() -> None:
    async with serving(shout) as service:
        job_id = await service.submit({"text": "a"})
        token = (await service.http.post(f"/jobs/{job_id}/token")).json()["token"]
        for params in ({}, {"token": token}, {"token": "nonsense"}):
            assert (await service.http.get(f"/jobs/{job_id}", params=params)).status_code == 200


async def test_a_websocket_takes_a_token_and_refuses_a_wrong_one(served: Served) -> None:
    job_id = await job_of(served)
    token = await token_of(served, job_id)
    url = served.url.replace("http://", "ws://") + "/stream"
    async with asyncio.timeout(10), connect(f"{url}?token={token}") as socket:
        await socket.send('{"op": "ping", "ref": "1"}')
        assert "pong" in str(await socket.recv())
    for wrong in (f"?token={token}x", "?token=", ""):
        with pytest.raises(InvalidStatus) as refused:
            async with connect(url + wrong):
                pass
        assert refused.value.response.status_code == 401


SIGNER = TokenSigner([b"key"], "deployment", clock=lambda: 1_700_000_000.0)
GOOD = SIGNER.sign("0199a5b0-0000-7000-8000-000000000001", 60).text


@given(place=st.integers(0, len(GOOD) - 1), character=st.characters())
def test_no_altered_token_is_taken(place: int, character: str) -> None:
    for altered in (GOOD[:place] + character + GOOD[place + 1 :], GOOD[:place] + character + GOOD[place:]):
        if altered != GOOD:
            with pytest.raises(UnauthorizedError):
                SIGNER.job_of(altered)


@given(length=st.integers(0, len(GOOD) - 1), tail=st.text(max_size=3))
def test_no_shortened_or_lengthened_token_is_taken(length: int, tail: str) -> None:
    for altered in (GOOD[:length], GOOD + (tail or "="), GOOD[:length] + "="):
        with pytest.raises(UnauthorizedError):
            SIGNER.job_of(altered)
