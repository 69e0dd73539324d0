"""The WebSocket: whatever a client sends is answered as documented, and the socket goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.api.pipelines import shout
from tests.api.socket_client import Frame, Socket, socket
from tests.fuzz.running import LONG, Running, examples, running
from tests.fuzz.values import JSON, NEARLY_JSON, TEXT, deep

pytestmark = LONG

REFUSALS = {
    "bad_request",
    "invalid_parameters",
    "not_found",
    "already_finished",
    "payload_too_large",
    "idempotency_mismatch",
    "rate_limited",
}
OPS = ("invoke", "subscribe", "unsubscribe", "cancel", "credit", "ping")
REFUSED_AS = {
    "cancel": "already_finished",
    "unsubscribe": "not_found",  # it is not followed
    "subscribe": "bad_request",  # it is followed already
}
"""Why a valid request about a job that has ended may be refused."""
NAMES = (
    *("op", "ref", "job_id", "after", "types", "reason", "n", "parameters", "mode", "idempotency_key", "cache"),
    *("run_name", "timeout", "labels", "webhook", "priority", "run_at", "expires_in", "taps"),
)
REF = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


def valid(job_ids: list[str]) -> st.SearchStrategy[Frame]:
    """Frames that the documentation names; ``job_ids``: of jobs that have ended."""
    ref, job_id = REF, st.sampled_from(job_ids)
    types = st.lists(st.sampled_from(["output", "log", "pipeline_completed"]), min_size=1, max_size=3)
    made = st.fixed_dictionaries
    return st.one_of(
        made({"op": st.just("ping"), "ref": ref}),
        made({"op": st.just("cancel"), "ref": ref, "job_id": job_id}, optional={"reason": TEXT}),
        made({"op": st.just("unsubscribe"), "ref": ref, "job_id": job_id}),
        made(
            {"op": st.just("subscribe"), "ref": ref, "job_id": job_id},
            optional={"after": st.integers(0, 2**53), "types": types},
        ),
        made(
            {"op": st.just("invoke"), "ref": ref, "parameters": made({"text": TEXT}, optional={"upper.mark": TEXT})},
            optional={
                "mode": st.sampled_from(["sync", "async"]),
                "types": types,
                "cache": st.sampled_from(["use", "no-cache", "no-store"]),
                "run_name": st.text("abc", min_size=1, max_size=9),
                "labels": st.dictionaries(st.text("abc", min_size=1, max_size=4), TEXT, max_size=2),
                "priority": st.integers(-10, 10),
                "timeout": st.floats(1, 100),
            },
        ),
    )


def nearly_valid(job_ids: list[str]) -> st.SearchStrategy[Frame]:
    """The same with members changed, left out and added."""
    change = st.lists(st.tuples(st.sampled_from(NAMES) | TEXT, JSON | st.sampled_from([*OPS, *job_ids])), max_size=3)
    return st.tuples(valid(job_ids), change, st.sets(st.sampled_from(NAMES), max_size=2)).map(
        lambda parts: {
            name: value for name, value in (parts[0] | dict(parts[1])).items() if name not in parts[2] or name == "op"
        }
    )


@pytest.fixture
def served(store_url: str) -> Iterator[tuple[Running, list[str]]]:
    with running(shout, store_url, service={"max_body": 50_000}) as service:
        job_ids = [
            service.request("POST", "/invoke", json={"parameters": {"text": text}}).json()["job_id"] for text in "abc"
        ]
        for job_id in job_ids:
            assert service.request("GET", f"/jobs/{job_id}", params={"wait": 5}).json()["status"] == "completed"
        yield service, job_ids


async def until_pong(client: Socket, ref: str) -> list[Frame]:
    """What came before the answer to this ping, and after it whatever answers what was queued before."""
    await client.send("ping", ref=ref)
    found: list[Frame] = []
    while not found or (found[-1]["op"], found[-1].get("ref")) != ("pong", ref):
        found.append(await client.next())
    return found


def check_error(frame: Frame) -> None:
    """It says what was wrong, in the words of the documentation."""
    problem = frame["problem"]
    assert problem["code"] in REFUSALS, frame
    assert 400 <= problem["status"] < 500
    assert problem["detail"]


def test_whatever_is_sent_is_answered_and_the_socket_goes_on(served: tuple[Running, list[str]]) -> None:
    service, job_ids = served
    texts = st.one_of(
        NEARLY_JSON.map(lambda data: data.decode("utf-8", "replace")),
        JSON.map(json.dumps),
        nearly_valid(job_ids).map(json.dumps),
    )

    @examples(150)
    @given(st.lists(texts | st.binary(max_size=50), min_size=1, max_size=6))
    @example([deep(10_000), '{"op":"ping","ref":' + deep(5_000) + "}", '{"op":"credit","n":1e400}'])
    @example(['{"op":"ping","ref":"\\ud800"}', '{"op":"\\ud800"}', '{"op":NaN}', '{"op":"credit","n":NaN}'])
    @example(['{"op":"subscribe","ref":"\\udfff","job_id":"\\ud800"}', '{"op":"ping","op":"cancel"}', b"\xff\xfe"])
    @example(['{"op":"credit","n":' + "9" * 4_000 + "}", '{"op":"subscribe","job_id":"a","after":' + "9" * 400 + "}"])
    def one(messages: list[str | bytes]) -> None:
        async def conversation() -> None:
            async with socket(service.served) as client:
                for message in messages:
                    await client.connection.send(message)
                for frame in await until_pong(client, "\x00 still there? \x00"):
                    if frame["op"] == "error":
                        check_error(frame)

        service.do(conversation())

    one()


def test_each_valid_request_gets_its_answer_whatever_stands_between(served: tuple[Running, list[str]]) -> None:
    service, job_ids = served
    noise = NEARLY_JSON.map(lambda data: data.decode("utf-8", "replace")) | st.binary(max_size=9)
    between = st.lists(noise, max_size=2)

    @examples(120)
    @given(st.lists(st.tuples(between, valid(job_ids)), min_size=1, max_size=5))
    def one(said: list[tuple[list[str | bytes], Frame]]) -> None:
        async def conversation() -> None:
            async with socket(service.served) as client:
                refs: list[str] = []
                for index, (nonsense, frame) in enumerate(said):
                    for message in nonsense:
                        await client.connection.send(message)
                    refs.append(f"{index}:{frame['ref']}")
                    await client.connection.send(json.dumps(frame | {"ref": refs[-1]}))
                for ref, (_, frame) in zip(refs, said, strict=True):
                    check_answer(frame, await client.answer(ref))

        service.do(conversation())

    one()


def check_answer(asked: Frame, answer: Frame) -> None:
    """What ``asked`` was answered is what the documentation says of it."""
    if answer["op"] == "error":
        check_error(answer)
        assert answer["problem"]["code"] == REFUSED_AS[asked["op"]], (asked, answer)
        return
    assert answer["op"] == ("pong" if asked["op"] == "ping" else "ack")
    if "job_id" in asked:
        assert answer["job_id"] == asked["job_id"]


def test_a_run_over_a_socket_tells_every_event_once_and_ends(served: tuple[Running, list[str]]) -> None:
    service, _ = served

    @examples(40)
    @given(
        TEXT,
        st.sampled_from(["sync", "async"]),
        st.none() | st.lists(st.integers(1, 5), min_size=1, max_size=3),
    )
    def one(text: str, mode: str, credits: list[int] | None) -> None:
        async def conversation() -> None:
            async with socket(service.served) as client:
                if credits:
                    await client.send("credit", n=credits[0])
                await client.send("invoke", ref="run", parameters={"text": text}, mode=mode)
                job_id = (await client.answer("run"))["job_id"]
                for n in [*(credits or [])[1:], 1000]:
                    await asyncio.sleep(0)
                    await client.send("credit", n=n)
                events = [frame for frame in await client.until_end(job_id) if frame["op"] == "event"]
                position = 0
                for frame in events:
                    position += 1 + frame.get("coalesced", 0)
                    assert frame["event"]["seq"] == position
                assert events[-1]["event"]["event_type"] == "pipeline_completed"
                assert events[-1]["event"]["data"]["outputs"]["loud"] == text.upper() + "!"

        service.do(conversation())

    one()


def test_a_frame_of_more_than_the_limit_ends_the_socket_with_1009_and_no_other(
    served: tuple[Running, list[str]],
) -> None:
    service, _ = served

    @examples(15)
    @given(st.integers(49_000, 60_000))
    def one(size: int) -> None:
        async def conversation() -> None:
            async with socket(service.served) as client, socket(service.served) as other:
                await client.connection.send("[" + " " * (size - 2) + "]")
                if size <= 50_000:
                    assert (await client.next())["problem"]["code"] == "bad_request"
                else:
                    await client.connection.wait_closed()
                    assert client.connection.close_code == 1009
                assert await until_pong(other, "there")

        service.do(conversation())

    one()
