from __future__ import annotations

import pytest
from tests.client.conftest import Canned, canned, problem

from pipeserve.client._protocol import Reply, Request
from pipeserve.client._repeats import PATIENCE, Repeats
from pipeserve.client.errors import UnreachableError

GATEWAY = Canned(502, [b"Bad Gateway"], "text/plain")
GONE = UnreachableError("gone")


def reply(given: Canned) -> Reply:
    return Reply(given.status, {"content-type": given.content_type, **given.headers}, b"".join(given.chunks))


def repeats(*, repeatable: bool = True) -> Repeats:
    return Repeats(Request("POST", "/invoke", repeatable=repeatable))


def test_a_call_without_a_key_is_sent_once() -> None:
    for given in (problem(503, "draining", retryable=True), problem(429, "queue_full", retryable=True), GATEWAY):
        assert repeats(repeatable=False).answered(reply(given)) is None
    with pytest.raises(UnreachableError):
        repeats(repeatable=False).failed(GONE)


@pytest.mark.parametrize("code", ["queue_full", "overloaded", "draining", "store_unavailable"])
def test_with_a_key_what_was_refused_is_repeated(code: str) -> None:
    assert repeats().answered(reply(problem(503, code, retryable=True, retry_after="3"))) == 3.0


def test_with_a_key_what_got_no_answer_is_repeated_too() -> None:
    assert repeats().failed(GONE) > 0
    assert repeats().answered(reply(GATEWAY)) is not None


@pytest.mark.parametrize(
    "given",
    [
        canned({"job_id": "j"}, 202),
        problem(422, "idempotency_mismatch"),
        problem(503, "draining", retryable=True, job_id="j"),
        problem(503, "model_missing"),
        problem(500, "worker_lost", retryable=True),
        problem(504, "timed_out", retryable=True),
    ],
    ids=["accepted", "mismatch", "how a job ended", "the step's own words", "worker lost", "timed out"],
)
def test_an_answer_that_would_be_the_same_again_stands(given: Canned) -> None:
    assert repeats().answered(reply(given)) is None


def test_the_service_says_how_long_to_wait_and_too_long_is_the_callers_to_decide() -> None:
    busy = problem(429, "queue_full", retryable=True, retry_after="25")
    tries = repeats()
    assert [tries.answered(reply(busy)) for _ in range(3)] == [25.0, 25.0, None]
    assert repeats().answered(reply(problem(429, "queue_full", retryable=True, retry_after="600"))) is None


def test_no_call_is_repeated_for_ever() -> None:
    tries = repeats()
    waits: list[float] = []

    def until_it_gives_up() -> None:
        while len(waits) < 100:
            waits.append(tries.failed(GONE))

    with pytest.raises(UnreachableError, match="gone"):
        until_it_gives_up()
    assert 0 < sum(waits) <= PATIENCE
