"""The WebSocket ``/stream``: its operations."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Sequence
from typing import Any

import pytest
from tests.api.away import AwayStore
from tests.api.harness import Served, serving, wait_until
from tests.api.pipelines import gated, rest, secretive, shout
from tests.api.socket_client import seqs, socket
from tests.api.worker import working
from websockets.exceptions import ConnectionClosed, InvalidStatus

from pipeserve.jobs import new_job_id
from pipeserve.runtime.follower import Follower
from pipeserve.runtime.memory import MemoryStore


@pytest.fixture
async def served():
    async with serving(shout) as service:
        yield service


async def finished(served: Served) -> tuple[str, int]:
    """A job that has completed, and the number of its last event."""
    async with working(served):
        job_id = await served.submit({"text": "a"})
        job = (await served.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()
    return job_id, job["last_seq"]


async def test_a_subscriber_without_a_position_gets_a_snapshot_and_every_event(served: Served):
    job_id, last = await finished(served)
    async with socket(served) as client:
        await client.send("subscribe", ref="s", job_id=job_id)
        assert await client.next() == {"op": "ack", "ref": "s", "job_id": job_id}
        snapshot = await client.next()
        assert (snapshot["op"], snapshot["job"]["status"]) == ("snapshot", "completed")
        frames = await client.until_end(job_id)
    assert seqs(frames) == list(range(1, last + 1))
    assert frames[-2]["event"]["event_type"] == "pipeline_completed"
    assert frames[-1] == {"op": "end", "job_id": job_id}


async def test_the_events_are_those_of_the_long_poll(served: Served):
    job_id, _ = await finished(served)
    async with socket(served) as client:
        await client.send("subscribe", job_id=job_id, after=0)
        frames = await client.until_end(job_id)
    log = (await served.http.get(f"/jobs/{job_id}/events")).json()
    assert [frame["event"] for frame in frames if frame["op"] == "event"] == log["events"]


async def test_a_subscriber_resumes_after_every_position(served: Served):
    job_id, last = await finished(served)
    async with socket(served) as client:
        for after in range(last + 1):
            await client.send("subscribe", ref=str(after), job_id=job_id, after=after)
            assert (await client.answer(str(after)))["op"] == "ack"
            frames = await client.until_end(job_id)
            assert {frame["op"] for frame in frames} <= {"event", "end"}
            assert seqs(frames) == list(range(after + 1, last + 1))


async def test_many_jobs_are_followed_live_over_one_socket(served: Served):
    async with socket(served) as client:
        jobs = [await served.submit({"text": "a"}) for _ in range(20)]
        for job_id in jobs:
            await client.send("subscribe", job_id=job_id, after=0)
        async with working(served):
            for job_id in jobs:
                numbers = seqs(await client.until_end(job_id))
                assert numbers == list(range(1, len(numbers) + 1))


async def test_types_leave_out_other_events(served: Served):
    job_id, _ = await finished(served)
    async with socket(served) as client:
        await client.send("subscribe", job_id=job_id, after=0, types=["step_started", "step_completed"])
        frames = await client.until_end(job_id)
    kinds = {frame["event"]["event_type"] for frame in frames if frame["op"] == "event"}
    assert kinds == {"step_started", "step_completed"}


async def test_a_job_may_be_subscribed_to_once_at_a_time_and_again_later(served: Served):
    job_id = await served.submit({"text": "a"})
    async with socket(served) as client:
        await client.send("subscribe", ref="1", job_id=job_id, after=0)
        await client.send("subscribe", ref="2", job_id=job_id, after=0)
        assert (await client.answer("1"))["op"] == "ack"
        refused = await client.answer("2")
        assert (refused["op"], refused["problem"]["code"], refused["job_id"]) == ("error", "bad_request", job_id)
        await client.send("unsubscribe", ref="3", job_id=job_id)
        assert (await client.answer("3"))["op"] == "ack"
        await client.send("subscribe", ref="4", job_id=job_id, after=0)
        assert (await client.answer("4"))["op"] == "ack"


async def test_no_event_of_a_job_comes_after_it_was_unsubscribed(served: Served):
    job_id = await served.submit({"text": "a"})
    other = await served.submit({"text": "a"})
    async with socket(served) as client:
        for followed in (job_id, other):
            await client.send("subscribe", job_id=followed, after=1)
        await client.send("unsubscribe", ref="u", job_id=job_id)
        await client.answer("u")
        before = list(client.kept)
        async with working(served):
            await client.until_end(other)
            await served.http.get(f"/jobs/{job_id}", params={"wait": 5})
        after = await client.pong()
    assert not [frame for frame in after if frame not in before and frame["op"] in ("event", "end")]


async def test_unsubscribing_from_a_job_that_has_just_ended_is_acknowledged_and_from_another_refused(served: Served):
    job_id, _ = await finished(served)
    async with socket(served) as client:
        await client.send("subscribe", job_id=job_id, after=0)
        await client.until_end(job_id)
        await client.send("unsubscribe", ref="ended", job_id=job_id)
        assert (await client.answer("ended"))["op"] == "ack"
        await client.send("unsubscribe", ref="other", job_id=new_job_id())
        assert (await client.answer("other"))["problem"]["code"] == "not_found"


async def test_an_invocation_is_acknowledged_and_followed_from_its_first_event_to_its_end(served: Served):
    async with socket(served) as client:
        await client.send("invoke", ref="i", parameters={"text": "a"}, run_name="mine", labels={"team": "x"})
        ack = await client.next()
        assert ack == {"op": "ack", "ref": "i", "job_id": ack["job_id"]}
        frames = await client.until_end(ack["job_id"])
        assert seqs(frames) == list(range(1, len(frames)))
        assert frames[-2]["event"]["event_type"] == "pipeline_completed"

    async def recorded() -> bool:
        return (await served.http.get(f"/jobs/{ack['job_id']}")).json().get("run_name") == "mine"

    await wait_until(recorded, "the run is recorded under its name")


async def test_a_memory_only_invocation_is_followed_too():
    async with serving(secretive) as served, socket(served) as client:
        await client.send("invoke", ref="i", parameters={"text": "a"})
        frames = await client.until_end((await client.answer("i"))["job_id"])
    assert frames[-2]["event"]["event_type"] == "pipeline_completed"


async def test_an_asynchronous_invocation_goes_on_without_the_socket(served: Served):
    async with socket(served) as client:
        await client.send("invoke", ref="i", parameters={"text": "a"}, mode="async")
        job_id = (await client.answer("i"))["job_id"]
    async with working(served):
        job = (await served.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()
    assert job["status"] == "completed"


async def test_the_same_key_is_the_same_job_over_the_socket_and_over_http(served: Served):
    async with socket(served) as client:
        for ref in ("1", "2"):
            await client.send("invoke", ref=ref, parameters={"text": "a"}, idempotency_key="k")
        first, second = await client.answer("1"), await client.answer("2")
        assert second == {**first, "ref": "2", "replayed": True}
        numbers = seqs(await client.until_end(first["job_id"]))
        assert numbers == list(range(1, len(numbers) + 1))
        answer = await served.invoke({"text": "a"}, headers={"Idempotency-Key": "k"})
        assert (answer.headers["idempotency-replayed"], answer.json()["job_id"]) == ("true", first["job_id"])
        await client.send("invoke", ref="3", parameters={"text": "b"}, idempotency_key="k")
        assert (await client.answer("3"))["problem"]["code"] == "idempotency_mismatch"


@pytest.mark.parametrize("execution", ["inline", "queued"])
@pytest.mark.parametrize("unsubscribed", [False, True])
async def test_a_synchronous_run_is_canceled_when_its_socket_goes(execution: str, unsubscribed: bool):
    held, _ = gated()
    async with serving(held, service={"sync_execution": execution}) as served, working(served):
        async with socket(served) as client:
            await client.send("invoke", ref="i", parameters={})
            job_id = (await client.answer("i"))["job_id"]
            await client.find(lambda frame: frame["op"] == "event" and frame["event"]["event_type"] == "output")
            if unsubscribed:
                await client.send("unsubscribe", ref="u", job_id=job_id)
                assert (await client.answer("u"))["op"] == "ack"
        job = (await served.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()
        assert (job["status"], job["cancel_reason"]) == ("canceled", "the caller disconnected")


async def test_a_synchronous_run_with_a_key_outlives_its_socket():
    held, gate = gated()
    async with serving(held) as served:
        async with socket(served) as client:
            await client.send("invoke", ref="i", parameters={}, idempotency_key="k")
            job_id = (await client.answer("i"))["job_id"]
            await wait_until(gate.entered.is_set, "the run is under way")
        await wait_until(lambda: not served.services.drain.begun and no_sockets(), "the socket is gone")
        gate.opened.set()
        job = (await served.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()
        assert job["status"] == "completed"


def no_sockets() -> bool:
    return not [task for task in asyncio.all_tasks() if task.get_name().startswith("socket")]


async def test_a_cancel_ends_a_job_and_its_events_say_so():
    held, gate = gated()
    async with serving(held) as served, socket(served) as client:
        await client.send("invoke", ref="i", parameters={})
        job_id = (await client.answer("i"))["job_id"]
        await wait_until(gate.entered.is_set, "the run is under way")
        await client.send("cancel", ref="c", job_id=job_id, reason="enough")
        assert await client.answer("c") == {"op": "ack", "ref": "c", "job_id": job_id, "status": "canceling"}
        frames = await client.until_end(job_id)
        assert frames[-2]["event"]["event_type"] == "pipeline_canceled"
        assert [frame["event"]["message"] for frame in frames if frame["op"] == "event"].count("enough") == 1


async def test_a_job_that_has_ended_otherwise_can_not_be_canceled(served: Served):
    job_id, _ = await finished(served)
    async with socket(served) as client:
        await client.send("cancel", ref="c", job_id=job_id)
        refused = await client.answer("c")
    assert (refused["problem"]["code"], refused["job_id"]) == ("already_finished", job_id)


REFUSED: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"op": "subscribe", "job_id": "nobody"}, "not_found", []),
    ({"op": "cancel", "job_id": "0199c0de-0000-7000-8000-000000000000"}, "not_found", []),
    ({"op": "subscribe"}, "invalid_parameters", ["job_id"]),
    ({"op": "subscribe", "job_id": 3}, "invalid_parameters", ["job_id"]),
    ({"op": "subscribe", "job_id": "a", "after": "1"}, "invalid_parameters", ["after"]),
    ({"op": "subscribe", "job_id": "a", "after": -1}, "invalid_parameters", ["after"]),
    ({"op": "subscribe", "job_id": "a", "types": ["no_such"]}, "invalid_parameters", ["types.0"]),
    ({"op": "subscribe", "job_id": "a", "extra": 1}, "invalid_parameters", ["extra"]),
    ({"op": "credit", "n": 0}, "invalid_parameters", ["n"]),
    ({"op": "credit", "n": True}, "invalid_parameters", ["n"]),
    ({"op": "credit"}, "invalid_parameters", ["n"]),
    ({"op": "jump"}, "bad_request", []),
    ({"op": ["ping"]}, "bad_request", []),
    ({}, "bad_request", []),
    ({"op": "invoke", "parameters": {"text": 3, "no": 1}}, "invalid_parameters", ["text", "no"]),
    ({"op": "invoke"}, "invalid_parameters", ["text"]),
    ({"op": "invoke", "parameters": []}, "invalid_parameters", ["parameters"]),
    ({"op": "invoke", "parameters": {"text": "a"}, "mode": "later"}, "invalid_parameters", ["mode"]),
    ({"op": "invoke", "parameters": {"text": "a"}, "timeout": -1}, "invalid_parameters", ["timeout"]),
    (
        {"op": "invoke", "parameters": {"text": "a"}, "idempotency_key": "a b"},
        "invalid_parameters",
        ["idempotency_key"],
    ),
    ({"op": "invoke", "parameters": {"text": "a"}, "expires_in": 5}, "invalid_parameters", ["expires_in"]),
    ({"op": "invoke", "parameters": {"text": "a"}, "webhook": {"url": "http://x"}}, "invalid_parameters", ["webhook"]),
]


@pytest.mark.parametrize(("sent", "code", "names"), REFUSED)
async def test_what_can_not_be_done_is_answered_with_a_problem(
    served: Served, sent: dict[str, Any], code: str, names: list[str]
):
    async with socket(served) as client:
        await client.connection.send(json.dumps({**sent, "ref": "r"}))
        refused = await client.next()
        assert (refused["op"], refused["ref"], refused["problem"]["code"]) == ("error", "r", code)
        assert refused["problem"]["instance"] == "/stream"
        assert sorted(item["name"] for item in refused["problem"].get("errors", [])) == sorted(names)
        assert await client.pong() == []


NO_FRAMES = ["", "{", "[]", "null", '"ping"', '{"op": "ping", "ref": 1e999}', b"\x00", b"", "[" * 9999]


@pytest.mark.parametrize("sent", NO_FRAMES)
async def test_what_is_no_frame_is_answered_with_a_problem(served: Served, sent: str | bytes):
    async with socket(served) as client:
        await client.connection.send(sent)
        refused = await client.next()
        assert (refused["op"], refused["ref"], refused["problem"]["code"]) == ("error", None, "bad_request")
        assert await client.pong() == []


async def test_a_full_queue_is_told_with_the_time_to_try_again():
    async with serving(rest, backend=MemoryStore(max_queue_size=1)) as served, socket(served) as client:
        for ref in ("1", "2"):
            await client.send("invoke", ref=ref, parameters={"seconds": 0}, mode="async")
        assert (await client.answer("1"))["op"] == "ack"
        refused = await client.answer("2")
    assert (refused["problem"]["code"], refused["problem"]["retryable"]) == ("queue_full", True)
    assert refused["retry_after"] > 0


async def test_while_the_store_is_away_synchronous_invocations_go_on_and_the_rest_is_refused():
    async with serving(shout, backend=AwayStore()) as served, socket(served) as client:
        await client.send("subscribe", ref="s", job_id=new_job_id())
        assert (await client.answer("s"))["problem"]["code"] == "store_unavailable"
        await client.send("invoke", ref="a", parameters={"text": "a"}, mode="async")
        assert (await client.answer("a"))["problem"]["code"] == "store_unavailable"
        await client.send("invoke", ref="i", parameters={"text": "a"})
        frames = await client.until_end((await client.answer("i"))["job_id"])
    assert frames[-2]["event"]["event_type"] == "pipeline_completed"


async def test_a_log_that_can_not_be_followed_is_told_with_its_job(served: Served):
    job_id = await served.submit({"text": "a"})
    log, served.store.log.follow = served.store.log.follow, AwayStore().follow
    async with socket(served) as client:
        await client.send("subscribe", ref="s", job_id=job_id, after=0)
        assert (await client.answer("s"))["op"] == "ack"
        failed = await client.next()
        assert (failed["op"], failed["job_id"], failed["ref"]) == ("error", job_id, None)
        assert failed["problem"]["code"] == "store_unavailable"
        served.store.log.follow = log
        await client.send("subscribe", ref="t", job_id=job_id, after=0)
        assert (await client.answer("t"))["op"] == "ack"
        assert seqs([await client.next()]) == [1]


async def test_a_socket_follows_a_thousand_jobs_and_no_more(served: Served):
    async with socket(served) as client:
        jobs = [await served.submit({"text": "a"}) for _ in range(1001)]
        for index, job_id in enumerate(jobs):
            await client.send("subscribe", ref=str(index), job_id=job_id, after=1)
        assert [(await client.answer(str(index)))["op"] for index in range(1000)] == ["ack"] * 1000
        assert (await client.answer("1000"))["problem"]["code"] == "rate_limited"
        await client.send("unsubscribe", job_id=jobs[0])
        await client.send("subscribe", ref="again", job_id=jobs[1000], after=1)
        assert (await client.answer("again"))["op"] == "ack"


async def test_the_subprotocol_is_accepted_if_it_is_offered(served: Served):
    async with socket(served, subprotocols=["other", "pipeserve.v1"]) as client:
        assert client.connection.subprotocol == "pipeserve.v1"
    async with socket(served) as client:
        assert client.connection.subprotocol is None


async def test_a_handshake_without_a_key_is_refused():
    async with serving(shout, service={"auth_key": "k"}) as served:
        with pytest.raises(InvalidStatus) as refused:
            async with socket(served):
                pass
        assert refused.value.response.status_code == 401
        async with socket(served, additional_headers={"Authorization": "Bearer k"}) as client:
            assert await client.pong() == []


async def test_a_frame_that_is_too_large_closes_the_socket():
    async with serving(shout, service={"max_body": 1024}) as served, socket(served) as client:
        await client.send("ping", ref="a" * 2000)
        with pytest.raises(ConnectionClosed) as closed:
            await client.next()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


async def test_a_token_opens_a_socket_for_reading_its_job_and_nothing_else():
    key = {"Authorization": "Bearer k"}
    async with serving(shout, service={"auth_key": "k"}) as served:
        mine, other = [await served.submit({"text": "a"}, headers=key) for _ in range(2)]
        token = (await served.http.post(f"/jobs/{mine}/token", headers=key)).json()["token"]
        async with socket(served, query=f"?token={token}") as client:
            forbidden = [
                ("subscribe", {"job_id": other}),
                ("unsubscribe", {"job_id": other}),
                ("cancel", {"job_id": mine}),
                ("cancel", {"job_id": other}),
                ("invoke", {"parameters": {"text": "a"}}),
            ]
            for index, (op, members) in enumerate(forbidden):
                await client.send(op, ref=str(index), **members)
                assert (await client.answer(str(index)))["problem"]["code"] == "forbidden"
            await client.send("credit", n=100)
            await client.send("subscribe", ref="s", job_id=mine, after=0)
            assert (await client.answer("s"))["op"] == "ack"
            assert seqs([await client.next()]) == [1]
            await client.send("unsubscribe", ref="u", job_id=mine)
            assert (await client.answer("u"))["op"] == "ack"
        with pytest.raises(InvalidStatus) as refused:
            async with socket(served, query=f"?token={token[:-2]}xx"):
                pass
        assert refused.value.response.status_code == 401


async def test_the_jobs_of_a_socket_share_what_its_reader_may_hold(served: Served):
    earlier = followers()  # what other tests have left lying about
    job_ids = [await served.submit({"text": str(at)}) for at in range(100)]
    async with socket(served) as client:
        for job_id in job_ids:
            await client.send("subscribe", ref=job_id, job_id=job_id, after=0)
            await client.answer(job_id)
        found = followers(but=earlier)
        assert len(found) == len(job_ids)
        assert sum(follower.batch_bytes for follower in found) < 2_000_000


def followers(*, but: Sequence[Follower] = ()) -> list[Follower]:
    """All readers of logs in this process, but for those in ``but``."""
    # By its own type: a weak proxy of something that is gone can't be asked.
    found = [held for held in gc.get_objects() if issubclass(type(held), Follower)]
    return [held for held in found if not any(held is one for one in but)]
