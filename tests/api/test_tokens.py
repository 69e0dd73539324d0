"""Tokens: a browser reads one job with them, for a while, and does nothing else."""

from __future__ import annotations

import asyncio
import logging
import string
from collections.abc import AsyncIterator
from datetime import datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.harness import Served, serving
from tests.api.pipelines import shout
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from pipeserve.errors import ConfigurationError, UnauthorizedError
from pipeserve.jobs import new_job_id
from pipeserve.settings import ServiceSettings
from pipeserve_api.tokens import TokenSigner, signing_keys

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
    bearer = {"Authorization": f"Bearer {token}"}
    assert (await served.http.get(f"/jobs/{job_id}", headers=bearer)).status_code == 200


async def test_an_id_in_capitals_is_as_unknown_with_a_token_as_with_a_key(served: Served) -> None:
    job_id = await job_of(served)
    token = await token_of(served, job_id)
    with_key = await served.http.get(f"/jobs/{job_id.upper()}", headers=KEY)
    with_token = await served.http.get(f"/jobs/{job_id.upper()}", params={"token": token})
    assert (with_token.status_code, with_token.json()["code"]) == (404, "not_found")
    assert with_token.json() == with_key.json()
    assert (await served.http.post(f"/jobs/{job_id.upper()}/token", headers=KEY)).status_code == 404


async def test_head_is_let_in_where_get_is(served: Served) -> None:
    mine, other = await job_of(served), await job_of(served)
    token = await token_of(served, mine)
    for path in ("", "/events", "/artifacts/none"):
        with_key = await served.http.head(f"/jobs/{mine}{path}", headers=KEY)
        with_token = await served.http.head(f"/jobs/{mine}{path}", params={"token": token})
        assert with_token.status_code == with_key.status_code != 401, path
    assert (await served.http.head(f"/jobs/{other}", params={"token": token})).status_code == 403
    assert (await served.http.head(f"/jobs/{mine}", params={"token": "pst_"})).status_code == 401


async def test_a_token_may_be_percent_encoded_and_the_last_of_several_counts(served: Served) -> None:
    mine, other = await job_of(served), await job_of(served)
    token, another = await token_of(served, mine), await token_of(served, other)
    encoded = "".join(f"%{ord(character):02x}" for character in token)
    queries = {
        f"token={encoded}": 200,
        f"%74oken={token}": 200,
        f"token=x&token={token}": 200,
        f"token={another}&token={token}": 200,
        f"token={token}&token={another}": 403,
        f"token={token}&token=x": 401,
        f"token={token}&token=": 401,
        f"TOKEN={token}": 401,
    }
    for query, status in queries.items():
        assert (await served.http.get(f"/jobs/{mine}?{query}")).status_code == status, query


async def test_no_shared_cache_keeps_what_a_token_reads(served: Served) -> None:
    job_id = await job_of(served)
    token = await token_of(served, job_id)
    for path in ("", "/events", "/logs", "/artifacts/none"):
        answer = await served.http.get(f"/jobs/{job_id}{path}", params={"token": token})
        assert answer.headers.get_list("cache-control") == ["private"], path
    async with served.http.stream("GET", f"/stream/{job_id}", params={"token": token}) as stream:
        assert stream.headers.get_list("cache-control") == ["no-cache, no-transform"]


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
    assert 30 < left <= 61
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
    # While replicas learn the new one in turn, those that know it take and make what the others take.
    learning = TokenSigner([b"a", b"b"], deployment)
    assert learning.job_of(old) == learning.job_of(new) == first.job_of(learning.sign(job_id, 60).text) == job_id
    assert both.job_of(old) == both.job_of(new) == second.job_of(new) == first.job_of(old) == job_id
    for signer, token in ((first, new), (second, old), (TokenSigner([b"a"], "another"), old)):
        with pytest.raises(UnauthorizedError):
            signer.job_of(token)


async def test_the_services_keys_sign_where_no_secret_is_set_and_one_that_leaves_takes_its_tokens_along() -> None:
    def signer(**settings: str) -> TokenSigner:
        return TokenSigner(signing_keys(ServiceSettings.from_environment(**settings)), "deployment")

    job_id = new_job_id()
    token = signer(auth_key="old").sign(job_id, 60).text
    for keys in ("old", "new,old", " new , old "):
        assert signer(auth_key=keys).job_of(token) == job_id
    for settings in ({"auth_key": "new"}, {"auth_key": "old", "token_secret": "another"}, {}):
        with pytest.raises(UnauthorizedError):
            signer(**settings).job_of(token)


async def test_a_token_whose_key_has_left_the_list_is_refused() -> None:
    async with serving(shout, service={"auth_key": "key,old"}) as served:
        job_id = await job_of(served)
        old, gone = (
            TokenSigner(signing_keys(ServiceSettings.from_environment(auth_key=key)), served.services.deployment.id)
            for key in ("old", "gone")
        )
        for signer, status in ((old, 200), (gone, 401)):
            token = signer.sign(job_id, 60).text
            assert (await served.http.get(f"/jobs/{job_id}", params={"token": token})).status_code == status


async def test_a_token_is_good_for_as_long_as_the_service_says() -> None:
    async with serving(shout, service={"auth_key": "key", "token_ttl": 100_000}) as served:
        answer = await served.http.post(f"/jobs/{await job_of(served)}/token", headers=KEY)
        left = datetime.fromisoformat(answer.json()["expires_at"]).timestamp() - datetime.now().timestamp()
        assert 99_000 < left <= 100_001


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
JOB = "0199a5b0-0000-7000-8000-000000000001"
GOOD = SIGNER.sign(JOB, 60).text


@given(place=st.integers(0, len(GOOD) - 1), character=st.characters())
def test_no_altered_token_is_taken(place: int, character: str) -> None:
    for altered in (GOOD[:place] + character + GOOD[place + 1 :], GOOD[:place] + character + GOOD[place:]):
        if altered != GOOD:
            with pytest.raises(UnauthorizedError):
                SIGNER.job_of(altered)


def test_no_token_with_any_character_exchanged_is_taken() -> None:
    # All of them: in the last one of a signature two bits say nothing, and chance seldom meets it.
    for place, there in enumerate(GOOD):
        for character in string.ascii_letters + string.digits + "-_.=":
            if character != there:
                with pytest.raises(UnauthorizedError):
                    SIGNER.job_of(GOOD[:place] + character + GOOD[place + 1 :])


@given(length=st.integers(0, len(GOOD) - 1), tail=st.text(max_size=3))
def test_no_shortened_or_lengthened_token_is_taken(length: int, tail: str) -> None:
    for altered in (GOOD[:length], GOOD + (tail or "="), GOOD[:length] + "="):
        with pytest.raises(UnauthorizedError):
            SIGNER.job_of(altered)


@given(seconds=st.floats(1, 604_800), now=st.floats(1e9, 3e9))
def test_a_token_is_good_for_no_less_than_was_asked_and_less_than_a_second_more(seconds: float, now: float) -> None:
    time = [now]
    signer = TokenSigner([b"key"], "deployment", clock=lambda: time[0])
    token = signer.sign("job", seconds)
    time[0] = token.expires_at - 0.001
    assert token.expires_at >= now + seconds > token.expires_at - 1
    assert signer.job_of(token.text) == "job"
    time[0] = token.expires_at
    with pytest.raises(UnauthorizedError):
        signer.job_of(token.text)


@given(job=st.uuids(), seconds=st.integers(61, 604_800))
def test_no_signature_fits_another_job_or_a_later_end(job: UUID, seconds: int) -> None:
    signature = GOOD.partition(".")[2]
    for wanted in (SIGNER.sign(str(job), 60), SIGNER.sign(JOB, seconds)):
        forged = f"{wanted.text.partition('.')[0]}.{signature}"
        with pytest.raises(UnauthorizedError):
            SIGNER.job_of(forged)
