"""Jobs through both clients, against a service of canned replies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from inspect import isasyncgen, isgenerator
from typing import Any

import pytest
from tests.client.conftest import Canned, CannedService, canned, job, problem

from pipeserve.client import AsyncClient, Client, LogLine, UnexpectedReplyError, UnreachableError
from pipeserve.errors import (
    IdempotencyMismatchError,
    InvalidParametersError,
    NotFoundError,
    NotRetryableError,
    QueueFullError,
)

ACCEPTED = {"job_id": "j", "run_id": "j", "status": "pending", "links": {}, "queue_position": 0}
BUSY = problem(429, "queue_full", retryable=True, retry_after="0")
BREAK = Canned(202, [b'{"job_'], breaks=True)
Use = Callable[[Any], Any]
Either = Callable[[Use], Awaitable[Any]]


@pytest.fixture(params=["blocking", "async"])
async def either(request: pytest.FixtureRequest, service: CannedService) -> AsyncIterator[Either]:
    """``await either(lambda client: client.job("j").retry())`` does it with one of the clients; generators are read."""
    if request.param == "blocking":
        with Client(service.url) as client:

            def use_blocking(use: Use) -> Any:
                used = use(client)
                return list(used) if isgenerator(used) else used

            yield lambda use: asyncio.to_thread(use_blocking, use)
    else:
        async with AsyncClient(service.url) as client:

            async def use_async(use: Use) -> Any:
                used = use(client)
                return [item async for item in used] if isasyncgen(used) else await used

            yield use_async


# Options


async def test_options_of_a_job_stand_in_the_body_beside_its_parameters(service: CannedService, either: Either) -> None:
    service.answer("POST /invoke", canned(ACCEPTED, 202))
    options: dict[str, Any] = {
        "labels": {"tenant": "a"},
        "priority": -3,
        "run_at": datetime(2026, 1, 31, 12, tzinfo=UTC),
        "expires_in": 60,
        "webhook": {"url": "https://example.com/hook", "events": ["pipeline_failed"]},
        "timeout": 5,
    }
    await either(lambda client: client.with_options(**options).submit(text="x", priority="the pipeline's own"))
    assert service.received[0].json == {
        **options,
        "run_at": "2026-01-31T12:00:00+00:00",
        "parameters": {"text": "x", "priority": "the pipeline's own"},
    }
    assert "idempotency-key" not in service.received[0].headers


async def test_zero_is_a_priority_too(service: CannedService, either: Either) -> None:
    service.answer("POST /invoke", canned(ACCEPTED, 202))
    await either(lambda client: client.with_options(priority=5).with_options(priority=0).submit())
    assert service.received[0].json["priority"] == 0


def test_a_start_without_a_time_zone_and_a_key_that_no_header_carries_are_refused(service: CannedService) -> None:
    with Client(service.url) as client:
        with pytest.raises(ValueError, match="run_at: a time without a zone"):
            client.with_options(run_at=datetime(2026, 1, 31))
        for key in ("", "two words", "schlüssel", "two\nlines"):
            with pytest.raises(ValueError, match="idempotency_key"):
                client.with_options(idempotency_key=key)


# Idempotency keys


async def test_a_submit_with_a_key_is_sent_again_until_it_is_answered(service: CannedService, either: Either) -> None:
    service.answer("POST /invoke", BREAK, BUSY, Canned(502, [b"Bad Gateway"], "text/plain"), canned(ACCEPTED, 202))
    submitted = await either(lambda client: client.with_options(idempotency_key="order-7").submit(x=1))
    assert submitted.job_id == "j"
    assert [request.headers["idempotency-key"] for request in service.received] == ["order-7"] * 4
    assert len({request.body for request in service.received}) == 1


async def test_a_call_with_a_key_is_sent_again_too(service: CannedService, either: Either) -> None:
    service.answer("POST /invoke", BUSY, canned({"job_id": "j", "outputs": {"output": 1}}))
    result = await either(lambda client: client.with_options(idempotency_key="k").invoke())
    assert (result.outputs, len(service.received)) == ({"output": 1}, 2)


@pytest.mark.parametrize(("reply", "error"), [(BREAK, UnreachableError), (BUSY, QueueFullError)])
async def test_a_submit_without_a_key_is_sent_once(
    service: CannedService, either: Either, reply: Canned, error: type[Exception]
) -> None:
    service.answer("POST /invoke", reply)
    with pytest.raises(error):
        await either(lambda client: client.submit())
    assert len(service.received) == 1


async def test_a_wait_that_is_too_long_is_left_to_the_caller(service: CannedService, either: Either) -> None:
    service.answer("POST /invoke", problem(429, "queue_full", retryable=True, retry_after="600"))
    with pytest.raises(QueueFullError) as caught:
        await either(lambda client: client.with_options(idempotency_key="k").submit())
    assert (caught.value.retry_after, len(service.received)) == (600.0, 1)


async def test_a_key_that_was_used_for_something_else_is_refused(service: CannedService, either: Either) -> None:
    service.answer("POST /invoke", problem(422, "idempotency_mismatch"))
    with pytest.raises(IdempotencyMismatchError):
        await either(lambda client: client.with_options(idempotency_key="k").submit())


# Many at once


REFUSAL = {"type": "t", "title": "t", "status": 422, "detail": "no such key", "code": "invalid_parameters"}


async def test_submit_many_gives_a_job_or_an_error_for_each(service: CannedService, either: Either) -> None:
    jobs = [{"index": 0, **ACCEPTED}, {"index": 1, "error": REFUSAL}, {"index": 2, **ACCEPTED, "job_id": "k"}]
    service.answer("POST /invoke/batch", canned({"jobs": jobs}, 202))
    first, second, third = await either(
        lambda client: client.with_options(labels={"a": "b"}).submit_many([{"x": 1}, {"y": 2}, {"x": 3}])
    )
    assert (first.job_id, third.job_id) == ("j", "k")
    assert isinstance(second, InvalidParametersError)
    assert second.detail == "no such key"
    assert service.received[0].json["items"] == [
        {"parameters": parameters, "labels": {"a": "b"}} for parameters in ({"x": 1}, {"y": 2}, {"x": 3})
    ]


async def test_submit_many_of_which_none_is_accepted_gives_the_errors_too(
    service: CannedService, either: Either
) -> None:
    full = REFUSAL | {"status": 429, "code": "queue_full", "retryable": True}
    jobs = [{"index": 0, "error": full}, {"index": 1, "error": REFUSAL}]
    service.answer("POST /invoke/batch", problem(429, "queue_full", retryable=True, retry_after="7", jobs=jobs))
    first, second = await either(lambda client: client.submit_many([{}, {}]))
    assert (type(first), first.retry_after, type(second)) == (QueueFullError, 7.0, InvalidParametersError)


async def test_submit_many_raises_what_was_said_of_the_batch_as_a_whole(service: CannedService, either: Either) -> None:
    service.answer("POST /invoke/batch", problem(422, "invalid_parameters"))
    with pytest.raises(InvalidParametersError):
        await either(lambda client: client.submit_many([{}, {}]))


@pytest.mark.parametrize("body", [{}, {"jobs": [ACCEPTED]}, {"jobs": [ACCEPTED, 7]}, {"jobs": [ACCEPTED, {}]}])
async def test_a_batch_that_is_not_answered_item_by_item_says_so(
    service: CannedService, either: Either, body: Any
) -> None:
    service.answer("POST /invoke/batch", canned(body, 202))
    with pytest.raises(UnexpectedReplyError):
        await either(lambda client: client.submit_many([{}, {}]))


async def test_nothing_to_submit_asks_nothing(service: CannedService, either: Either) -> None:
    assert await either(lambda client: client.submit_many([])) == []
    assert service.received == []


# One job


async def test_retry_gives_the_new_job_and_is_sent_again_until_it_is_answered(
    service: CannedService, either: Either
) -> None:
    service.answer("POST /jobs/j/retry", BREAK, BUSY, canned({**ACCEPTED, "job_id": "new"}, 202))
    assert (await either(lambda client: client.job("j").retry())).job_id == "new"
    await either(lambda client: client.job("j").retry())
    await either(lambda client: client.job("j").retry(idempotency_key="once"))
    keys = [request.headers["idempotency-key"] for request in service.received]
    assert len(set(keys[:3])) == 1, "the tries of one call are one retry"
    assert keys[3] != keys[0], "another call is another"
    assert keys[4] == "once"


async def test_retry_of_a_job_that_has_not_ended_is_refused(service: CannedService, either: Either) -> None:
    service.answer("POST /jobs/j/retry", problem(409, "not_retryable", job_id="j"))
    with pytest.raises(NotRetryableError) as caught:
        await either(lambda client: client.job("j").retry())
    assert (caught.value.job_id, caught.value.status, caught.value.retryable) == ("j", 409, False)


async def test_the_record_is_the_job_as_it_is_now(service: CannedService, either: Either) -> None:
    service.answer("GET /jobs/j", canned(job("running", retried_from="i")))
    record = await either(lambda client: client.job("j").record())
    assert (record.status, record.retried_from) == ("running", "i")
    assert service.received[0].query == ""


async def test_explain_is_what_the_service_says(service: CannedService, either: Either) -> None:
    service.answer("GET /jobs/j/explain", canned({"summary": ["It ran."]}))
    assert await either(lambda client: client.job("j").explain()) == {"summary": ["It ran."]}


def line(seq: int) -> dict[str, Any]:
    return {
        "seq": seq,
        "timestamp": "2026-01-31T12:00:00.000000Z",
        "step_name": "split",
        "level": "info",
        "logger": "print",
        "message": f"line {seq}",
        "attempt": 1,
        "cut": False,
    }


async def test_logs_are_read_page_by_page_to_their_end(service: CannedService, either: Either) -> None:
    service.answer(
        "GET /jobs/j/logs",
        canned({"logs": [line(3), line(4)], "next": 4, "done": False}),
        canned({"logs": [], "next": 30, "done": False}),
        canned({"logs": [line(31)], "next": 31, "done": True}),
    )
    lines: list[LogLine] = await either(lambda client: client.job("j").logs())
    assert [line.message for line in lines] == ["line 3", "line 4", "line 31"]
    assert (lines[0].step_name, lines[0].timestamp) == ("split", datetime(2026, 1, 31, 12, tzinfo=UTC))
    assert [request.query for request in service.received] == ["after=0", "after=4", "after=30"]


async def test_logs_of_a_job_that_runs_end_where_they_are_now(service: CannedService, either: Either) -> None:
    service.answer(
        "GET /jobs/j/logs",
        canned({"logs": [line(3)], "next": 3, "done": False}),
        canned({"logs": [], "next": 3, "done": False}),
    )
    assert [line.seq for line in await either(lambda client: client.job("j").logs())] == [3]


# Many jobs


def page(*ids: str, cursor: str | None = None) -> Canned:
    return canned({"jobs": [job("failed", job_id=id_) for id_ in ids], "total": 9, "next_cursor": cursor})


async def test_jobs_walks_over_all_pages(service: CannedService, either: Either) -> None:
    service.answer("GET /jobs", page("3", "2", cursor="c&d"), page("1"))
    found = await either(
        lambda client: client.jobs(status="failed", code="worker_lost", labels={"tenant": "a b"}, limit=None)
    )
    assert [record.job_id for record in found] == ["3", "2", "1"]
    filters = "status=failed&code=worker_lost&label.tenant=a+b&limit=100"
    assert [request.query for request in service.received] == [filters, f"{filters}&cursor=c%26d"]


async def test_jobs_stops_at_the_limit(service: CannedService, either: Either) -> None:
    service.answer("GET /jobs", page("3", "2", cursor="c"), page("1", "0", cursor="e"))
    assert [record.job_id for record in await either(lambda client: client.jobs(limit=3))] == ["3", "2", "1"]
    assert [request.query for request in service.received] == ["limit=3", "limit=1&cursor=c"]


async def test_a_caller_may_leave_a_walk_and_no_page_is_asked_for_before_it_is_needed(service: CannedService) -> None:
    service.answer("GET /jobs", page("3", "2", cursor="c"))
    with Client(service.url) as client:
        walk: Iterator[Any] = client.jobs()
        assert service.received == []
        assert next(walk).job_id == "3"
    async with AsyncClient(service.url) as client:
        async_walk: AsyncGenerator[Any] = client.jobs()
        assert (await anext(async_walk)).job_id == "3"
        await async_walk.aclose()
    assert len(service.received) == 2


async def test_jobs_of_a_page_that_is_none_says_so(service: CannedService, either: Either) -> None:
    service.answer("GET /jobs", canned({"jobs": [{"job_id": "j"}]}))
    with pytest.raises(UnexpectedReplyError, match="no page of jobs"):
        await either(lambda client: client.jobs())


async def test_an_unknown_job_is_not_found(service: CannedService, either: Either) -> None:
    service.answer("GET /jobs/j", problem(404, "not_found"))
    with pytest.raises(NotFoundError):
        await either(lambda client: client.job("j").record())
