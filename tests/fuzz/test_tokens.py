"""Tokens and keys: what was not made by the service, or was changed in any way, opens nothing and breaks nothing."""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tests.api.harness import bearer
from tests.api.pipelines import shout
from tests.fuzz.running import LONG, Running, examples, running

from pipeserve.errors import UnauthorizedError
from pipeserve.jobs import new_job_id
from pipeserve_api.tokens import TokenSigner

pytestmark = LONG
KEY = "psk_the-only-key"
ALPHABET = string.ascii_letters + string.digits + "-_"
SIGNER = TokenSigner([b"first", b"second"], "deployment", clock=lambda: 1_000_000.0)
JOB = "0199c0de-0000-7000-8000-000000000000"
TOKEN = SIGNER.sign(JOB, 60).text
HEADER = st.binary(max_size=60).map(lambda raw: bytes(byte for byte in raw if byte >= 0x20 and byte != 0x7F).strip())


@st.composite
def changed(draw: st.DrawFn, token: str) -> str:
    """``token`` with something done to it that makes another text of it."""
    at = draw(st.integers(0, len(token) - 1))
    char = draw(st.sampled_from(ALPHABET + ".=+/ %") | st.characters(exclude_categories=["Cs"]))
    kind = draw(st.integers(0, 7))
    said, _, signature = token.removeprefix("pst_").partition(".")
    made = [
        token[:at] + char + token[at + 1 :],
        token[:at] + token[at + 1 :],
        token[:at] + char + token[at:],
        token[:at],
        token + char,
        token.replace("-", "+").replace("_", "/"),
        token + "=" * draw(st.integers(1, 4)),
        f"pst_{said[: len(said) - at % len(said)]}.{signature}",
    ][kind]
    assume(made != token)
    return made


@pytest.fixture
def locked(store_url: str) -> Iterator[Running]:
    with running(shout, store_url, service={"auth_key": KEY, "token_secret": "secret"}) as service:
        yield service


def token_of(locked: Running) -> tuple[str, str]:
    """A job, and a token for it that works."""
    body = {"parameters": {"text": "a"}}
    job_id = locked.request("POST", "/invoke", json=body, headers=bearer(KEY)).json()["job_id"]
    token = locked.request("POST", f"/jobs/{job_id}/token", headers=bearer(KEY)).json()["token"]
    assert locked.request("GET", f"/jobs/{job_id}", params={"token": token}).status_code == 200
    return job_id, token


@examples(1500)
@given(changed(TOKEN))
def test_a_token_that_was_changed_is_none(text: str) -> None:
    with pytest.raises(UnauthorizedError):
        SIGNER.job_of(text)


@examples(300)
@given(st.text(max_size=600) | st.from_regex(r"pst_[A-Za-z0-9_-]{1,80}\.[A-Za-z0-9_-]{43}", fullmatch=True))
@example("")
@example("pst_.")
@example("pst_\ud800." + "A" * 43)
def test_a_text_that_was_made_up_is_none(text: str) -> None:
    with pytest.raises(UnauthorizedError):
        SIGNER.job_of(text)


@examples(300)
@given(st.integers(1, 604_800), st.integers(0, 700_000), st.sampled_from([b"first", b"second", b"third"]))
def test_a_token_opens_its_job_until_its_end_and_only_with_a_secret_in_use(
    seconds: int, later: int, secret: bytes
) -> None:
    job_id = new_job_id()
    text = TokenSigner([secret], "deployment", clock=lambda: 1_000_000.0).sign(job_id, seconds).text
    reader = TokenSigner([b"first", b"second"], "deployment", clock=lambda: 1_000_000.0 + later)
    if secret != b"third" and later < seconds:
        assert reader.job_of(text) == job_id
    else:
        with pytest.raises(UnauthorizedError):
            reader.job_of(text)
    with pytest.raises(UnauthorizedError):
        TokenSigner([secret], "another", clock=lambda: 1_000_000.0).job_of(text)


def test_a_changed_token_in_a_url_opens_nothing(locked: Running) -> None:
    job_id, token = token_of(locked)

    @examples(150)
    @given(changed(token), st.sampled_from([f"/jobs/{job_id}", f"/jobs/{job_id}/events", f"/stream/{job_id}"]))
    def one(text: str, path: str) -> None:
        refused(locked.request("GET", path, params={"token": text}))

    one()


def test_a_token_opens_no_other_job_and_no_other_route(locked: Running) -> None:
    job_id, token = token_of(locked)
    other, _ = token_of(locked)
    paths = [f"/jobs/{other}", "/jobs", "/info", "/metrics", "/status", f"/stream/{other}", "/openapi.json"]
    paths += [f"/events?job={job_id}&job={other}", f"/jobs/{job_id}/../{other}", f"/jobs/{job_id}%2f..%2f{other}"]

    @examples(60)
    @given(st.sampled_from(paths), st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"]))
    def one(path: str, method: str) -> None:
        answer = locked.request(method, path, headers=bearer(token))
        assert answer.status_code in (403, 404), (method, path, answer.status_code)

    one()


def test_whatever_stands_for_a_key_is_answered_with_401(locked: Running) -> None:
    @examples(200)
    @given(
        HEADER,
        st.sampled_from(["Authorization", "X-API-Key"]),
        st.sampled_from([b"", b"Bearer ", b"bearer\t", b"Basic ", b"Bearer pst_", b"Bearer " + KEY[:-1].encode()]),
    )
    def one(given_value: bytes, name: str, scheme: bytes) -> None:
        value = (scheme + given_value).strip()
        assume(value.removeprefix(b"Bearer ").strip() != KEY.encode())
        refused(locked.request("GET", "/jobs", headers=[(name.encode(), value)]))

    one()


def test_a_query_of_any_bytes_is_answered(locked: Running) -> None:
    @examples(150)
    @given(st.binary(max_size=40), st.booleans())
    def one(raw: bytes, as_token: bool) -> None:
        query = "".join(f"%{byte:02x}" for byte in raw)
        refused(locked.request("GET", f"/jobs?{'token=' if as_token else ''}{query}"))

    one()


def refused(answer: Any) -> None:
    """A 401 in the words of the documentation."""
    assert answer.status_code == 401, answer.text
    assert answer.json()["code"] == "unauthorized"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == 'Bearer realm="pipeserve"'
