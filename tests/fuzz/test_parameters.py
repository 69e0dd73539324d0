"""Bodies of ``POST /invoke`` of any shape: answered, or refused in the words of the documentation; never a fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.fuzz.pipelines import echo, survey
from tests.fuzz.running import LONG, Running, examples, running
from tests.fuzz.values import JSON, JSON_OF_WORDS, NEARLY_JSON, TEXT

pytestmark = LONG

PLACE = st.fixed_dictionaries({"city": st.text(min_size=1, max_size=20) | JSON}, optional={"height": JSON, "x": JSON})
NEARLY = st.fixed_dictionaries(
    {"text": TEXT | JSON, "place": PLACE | JSON},
    optional={
        "times": st.integers(1, 20) | JSON,
        "colour": st.sampled_from(["red", "blue"]) | JSON,
        "tags": st.lists(TEXT, max_size=3) | JSON,
        "exact": st.booleans() | JSON,
        "describe.note": TEXT | JSON,
        "count.text": JSON,
        "unknown": JSON,
    },
)
TERMS = st.fixed_dictionaries(
    {"parameters": NEARLY},
    optional={
        "run_name": TEXT | JSON,
        "timeout": st.floats(0, 10) | JSON,
        "labels": st.dictionaries(TEXT, TEXT, max_size=3) | JSON,
        "webhook": JSON,
        "priority": st.integers(-11, 11) | JSON,
        "run_at": TEXT | JSON,
        "expires_in": JSON,
        "taps": st.lists(st.sampled_from(["count.letters", "nothing.at_all"]) | TEXT, max_size=2) | JSON,
    },
)


@pytest.fixture
def asked(store_url: str) -> Iterator[Running]:
    with running(survey, store_url) as service:
        yield service


@pytest.fixture
def echoing(store_url: str) -> Iterator[Running]:
    with running(echo, store_url) as service:
        yield service


def check(answer: Any) -> None:
    """It is the result, or a problem of the caller's."""
    if answer.status_code in (200, 202):
        assert answer.json()["job_id"]
        return
    problem = answer.json()
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert (problem["status"], problem["instance"]) == (answer.status_code, "/invoke")
    assert problem["type"] == f"urn:pipeserve:problem:{problem['code']}"
    assert problem["code"] in ("bad_request", "invalid_parameters", "payload_too_large")
    if problem["code"] == "invalid_parameters":
        assert problem["errors"], "says not which key is wrong"


def test_parameters_of_any_type_are_taken_or_refused(asked: Running) -> None:
    @examples(150)
    @given(TERMS, st.sampled_from(["sync", "async"]))
    def one(body: Any, mode: str) -> None:
        content = json.dumps(body).encode()
        check(asked.request("POST", "/invoke", params={"mode": mode}, content=content))

    one()


def test_bodies_that_are_almost_json_are_taken_or_refused(asked: Running) -> None:
    @examples(150)
    @given(NEARLY_JSON, st.booleans())
    @example(b'{"parameters": ' + b'{"a":' * 3000 + b"1" + b"}" * 3001, False)
    def one(content: bytes, wrapped: bool) -> None:
        body = b'{"parameters": {"text": "", "place": {"city": "a"}, "tags": ' + content + b"}}" if wrapped else content
        check(asked.request("POST", "/invoke", content=body))

    one()


def test_what_the_type_admits_comes_back_as_it_was_sent(echoing: Running) -> None:
    @examples(150)
    @given(JSON_OF_WORDS)
    @example(-0.0)
    @example(5e-324)
    @example(1.7976931348623157e308)
    @example({"": [{}], "\x00": "\x00\x7f\u2028\U0010ffff"})
    def one(value: Any) -> None:
        answer = echoing.request("POST", "/invoke", content=json.dumps({"parameters": {"value": value}}).encode())
        assert answer.status_code == 200, answer.text
        assert same(answer.json()["outputs"]["value"], value)

    one()


def test_a_larger_whole_number_reaches_the_step_and_its_return_is_refused_by_name(echoing: Running) -> None:
    @examples(20)
    @given(st.integers(2**64, 2**200) | st.integers(-(2**200), -(2**63) - 1))
    def one(value: int) -> None:
        answer = echoing.request("POST", "/invoke", content=b'{"parameters": {"value": %d}}' % value)
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["step"]) == (500, "step_failed", "back"), answer.text
        assert "64-bit" in problem["detail"]

    one()


def test_a_job_keeps_what_it_was_sent_and_what_it_returned(echoing: Running) -> None:
    @examples(40)
    @given(JSON_OF_WORDS)
    def one(value: Any) -> None:
        body = json.dumps({"parameters": {"value": value}}).encode()
        sent = echoing.request("POST", "/invoke", params={"mode": "async"}, content=body)
        assert sent.status_code == 202, sent.text
        job = echoing.request("GET", sent.json()["links"]["self"], params={"wait": 10}).json()
        assert job["status"] == "completed", job
        assert same(job["outputs"]["value"], value)
        assert same(job["parameters"]["value"], value)

    one()


def same(left: Any, right: Any) -> bool:
    """Whether both are the same JSON, the kinds of number and the sign of zero included."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
