"""The WebSocket ``/stream``: how it ends, and what nobody can make it do."""

from __future__ import annotations

import asyncio
import gc
import json
import socket as sockets
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.api.harness import Served, serving, wait_until
from tests.api.pipelines import gated, shout
from tests.api.socket_client import Socket, socket
from tests.api.test_socket_credit import OUTPUT, job_with
from websockets.exceptions import ConnectionClosed

from pipeserve.events import Event, clean_text, encode_body
from pipeserve.runtime.ports import RunView
from pipeserve_api.routes.socket import SocketEndpoint
from pipeserve_api.socket.protocol import SocketProtocol


def socket_tasks() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("socket-")]


async def closed_with(client: Socket) -> int | None:
    """The code of the close that ends what the server still sends."""
    try:
        async with asyncio.timeout(5):
            while True:
                await client.connection.recv()
    except ConnectionClosed as closed:
        return None if closed.rcvd is None else closed.rcvd.code


async def large_job(served: Served) -> str:
    """A job with more in its log than the buffers of a connection hold."""
    job_id = await job_with(served, [])
    body = encode_body(Event(OUTPUT, job_id, 1, data={"value": "x" * 1_000_000}))
    await served.store.ledger.append(job_id, 1, [body] * 30, RunView())
    return job_id


def small_buffers(served: Served) -> sockets.socket:
    """A connection that takes little at a time."""
    host, port = served.url.removeprefix("http://").split(":")
    connection = sockets.socket()
    connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    connection.setblocking(False)
    return connection


async def test_a_drain_closes_with_1001_and_leaves_runs_their_time():
    held, gate = gated()
    async with serving(held) as served, socket(served) as client:
        await client.send("invoke", ref="i", parameters={})
        job_id = (await client.answer("i"))["job_id"]
        await wait_until(gate.entered.is_set, "the run is under way")
        served.drain.begin()
        assert await closed_with(client) == 1001
        await wait_until(lambda: not socket_tasks(), "the session has ended")
        gate.opened.set()
        job = (await served.http.get(f"/jobs/{job_id}", params={"wait": 5})).json()
        assert job["status"] == "completed"


async def test_a_drain_ends_a_socket_whose_reader_has_stopped():
    async with serving(shout) as served:
        job_id = await large_job(served)
        async with socket(served, sock=small_buffers(served), max_queue=1) as client:
            await client.send("subscribe", ref="s", job_id=job_id, after=0)
            assert json.loads(await client.connection.recv())["op"] == "ack"
            held = await blocked()
            served.drain.begin()
            await wait_until(lambda: not socket_tasks(), "the session has ended")
            await wait_until(lambda: held.close_sent, "the goodbye is in the buffer")
            assert await closed_with(client) == 1001


async def blocked() -> SocketProtocol:
    """The connection, once its buffer is full."""
    found = [held for held in gc.get_objects() if type(held) is SocketProtocol and not held.disconnected]
    await wait_until(lambda: any(not held.writable.is_set() for held in found), "the server waits for its reader")
    return next(held for held in found if not held.writable.is_set())


async def test_a_reader_that_takes_nothing_is_closed_with_1013(monkeypatch: pytest.MonkeyPatch):
    made = SocketEndpoint.__init__
    monkeypatch.setattr(SocketEndpoint, "__init__", lambda self: made(self, stall_seconds=0.2))
    async with serving(shout) as served:
        job_id = await large_job(served)
        async with socket(served, sock=small_buffers(served), max_queue=1) as client:
            await client.send("subscribe", ref="s", job_id=job_id, after=0)
            held = await blocked()
            await wait_until(lambda: not socket_tasks(), "the session has ended")
            await wait_until(lambda: held.close_sent, "the goodbye is in the buffer")
            assert await closed_with(client) == 1013
        async with socket(served) as other:
            assert await other.pong() == []


async def test_nothing_is_left_of_a_socket_whose_client_vanished():
    async with serving(shout) as served:
        async with socket(served) as client:
            await client.send("subscribe", ref="s", job_id=await served.submit({"text": "a"}))
            await client.answer("s")
            assert socket_tasks()
            client.connection.transport.abort()
        await wait_until(lambda: not socket_tasks(), "the session has ended")
        assert not served.store.log._followers


async def test_pings_and_credit_overtake_operations_that_are_waiting():
    async with serving(shout) as served:
        asked, thawed = asyncio.Event(), asyncio.Event()
        submit = served.store.ledger.submit

        async def hang(job: Any) -> Any:
            asked.set()
            await thawed.wait()
            return await submit(job)

        served.store.ledger.submit = hang
        async with socket(served) as client:
            await client.send("invoke", ref="i", parameters={"text": "a"}, mode="async")
            await client.send("cancel", ref="c", job_id="nobody")
            await asked.wait()
            assert await client.pong() == []
            thawed.set()
            assert (await client.answer("i"))["op"] == "ack"
            assert (await client.answer("c"))["problem"]["code"] == "not_found"


async def test_operations_are_done_in_their_order():
    async with serving(shout) as served, socket(served) as client:
        job_id = await served.submit({"text": "a"})
        for index in range(0, 100, 2):
            await client.send("subscribe", ref=str(index), job_id=job_id, after=9)
            await client.send("unsubscribe", ref=str(index + 1), job_id=job_id)
        answers = [await client.next() for _ in range(100)]
    assert [answer["ref"] for answer in answers] == [str(index) for index in range(100)]
    assert {answer["op"] for answer in answers} == {"ack"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
OPS = st.sampled_from(["invoke", "subscribe", "unsubscribe", "cancel", "ping", "credit"])
NAMES = ["ref", "job_id", "after", "types", "n", "parameters", "mode", "reason", "cache", "idempotency_key", "timeout"]
NEAR_FRAMES = st.builds(
    lambda op, rest: json.dumps({**rest, "op": op}), OPS, st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5)
)
ANYTHING = st.one_of(st.binary(max_size=50), st.text(max_size=50), JSON.map(json.dumps), NEAR_FRAMES)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sent=st.lists(ANYTHING, min_size=1, max_size=20))
def test_whatever_is_sent_the_socket_stays_usable(sent: list[str | bytes]):
    async def send_all() -> None:
        async with serving(shout) as served, socket(served) as client:
            for frame in sent:
                await client.connection.send(clean_text(frame) if isinstance(frame, str) else frame)
            await client.send("ping", ref="the last")
            await client.answer("the last")
            await client.send("cancel", ref="in order", job_id="nobody")
            answer = await client.answer("in order")
            assert answer["problem"]["code"] == "not_found"
            errors = [frame for frame in client.kept if frame["op"] == "error"]
            assert all(frame["problem"]["code"] != "internal_error" for frame in errors)

    asyncio.run(send_all())
