"""``GET /stream/{job_id}``: Server-Sent Events."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from typing import Any

import httpx
import pytest
from starlette.types import Message
from tests.api.harness import Served, frames, serving, wait_until
from tests.api.pipelines import gated, shout
from tests.api.worker import working
from tests.contracts.stores import NO_VIEW
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeserve.events import Event, EventType, encode_body
from pipeserve.runtime.follower import Follower
from pipeserve.runtime.ports import LogEntry, LogGap
from pipeserve_api.drain import Drain
from pipeserve_api.lookup import LocalLog
from pipeserve_api.pump import End, Pump
from pipeserve_api.sse import EventStream, JobFrames


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


async def test_a_late_subscriber_gets_a_snapshot_and_then_everything(served: Served):
    job_id, last = await finished(served)
    answer = await served.http.get(f"/stream/{job_id}")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.text.startswith("retry: 2000\n")
    snapshot, *blocks = frames(answer.text)
    assert snapshot["event"] == "snapshot"
    assert "id" not in snapshot
    assert json.loads(snapshot["data"])["status"] == "completed"
    assert [block["id"] for block in blocks] == [str(seq) for seq in range(1, last + 1)]
    for block in blocks:
        event = json.loads(block["data"])
        assert (str(event["seq"]), event["event_type"]) == (block["id"], block["event"])
    assert blocks[-1]["event"] == "pipeline_completed"


async def test_a_subscriber_follows_a_job_from_before_it_runs_to_its_end(served: Served):
    job_id = await served.submit({"text": "a"})
    async with served.http.stream("GET", f"/stream/{job_id}") as answer, working(served):
        text = "".join([chunk async for chunk in answer.aiter_text()])
    snapshot, *blocks = frames(text)
    assert json.loads(snapshot["data"])["status"] == "pending"
    assert [block["id"] for block in blocks] == [str(seq) for seq in range(1, len(blocks) + 1)]
    assert blocks[0]["event"] == "job_queued"
    assert blocks[-1]["event"] == "pipeline_completed"


async def test_a_running_synchronous_call_can_be_followed():
    held, gate = gated()
    async with serving(held) as service:
        call = asyncio.create_task(service.invoke())
        await wait_until(gate.entered.is_set, "the run is under way")
        (run,) = service.services.runtime._runs
        async with service.http.stream("GET", f"/stream/{run.job_id}") as answer:
            gate.opened.set()
            text = "".join([chunk async for chunk in answer.aiter_text()])
        assert frames(text)[-1]["event"] == "pipeline_completed"
        await call


@pytest.mark.parametrize("how", ["header", "query", "both"])
async def test_a_subscriber_resumes_after_its_position(served: Served, how: str):
    job_id, last = await finished(served)
    headers = {} if how == "query" else {"Last-Event-ID": "2"}
    query = {"header": {}, "query": {"after": "2"}, "both": {"after": "1"}}[how]
    answer = await served.http.get(f"/stream/{job_id}", headers=headers, params=query)
    blocks = frames(answer.text)
    assert [block["id"] for block in blocks] == [str(seq) for seq in range(3, last + 1)]
    assert all(block["event"] != "snapshot" for block in blocks)


async def test_a_subscriber_at_position_zero_gets_all_without_a_snapshot(served: Served):
    job_id, last = await finished(served)
    blocks = frames((await served.http.get(f"/stream/{job_id}?after=0")).text)
    assert [block["id"] for block in blocks] == [str(seq) for seq in range(1, last + 1)]


async def test_who_has_read_everything_gets_204(served: Served):
    job_id, last = await finished(served)
    answer = await served.http.get(f"/stream/{job_id}", headers={"Last-Event-ID": str(last)})
    assert answer.status_code == 204
    assert answer.content == b""


async def test_a_position_beyond_the_end_is_followed_to_the_end():
    held, gate = gated()
    async with serving(held) as service:
        call = asyncio.create_task(service.invoke())
        await wait_until(gate.entered.is_set, "the run is under way")
        (run,) = service.services.runtime._runs
        job_id = await service.submit()
        path = f"/stream/{run.job_id}"
        async with (
            service.http.stream("GET", path, params={"after": "500"}) as here,
            service.http.stream("GET", f"/stream/{job_id}", params={"after": "500"}) as queued,
            working(service),
        ):
            gate.opened.set()
            for answer in (here, queued):
                async with asyncio.timeout(5):
                    assert "id:" not in "".join([chunk async for chunk in answer.aiter_text()])
        assert (await service.http.get(path, params={"after": "500"})).status_code == 204
        await call


@pytest.mark.parametrize("position", ["-1", "abc", "1.5", "²", "9" * 30])
async def test_a_position_that_is_no_number_is_400(served: Served, position: str):
    job_id, _ = await finished(served)
    assert (await served.http.get(f"/stream/{job_id}", params={"after": position})).status_code == 400
    headers = httpx.Headers({"Last-Event-ID": position}, encoding="utf-8")
    assert (await served.http.get(f"/stream/{job_id}", headers=headers)).status_code == 400


async def test_types_choose_events(served: Served):
    job_id, _ = await finished(served)
    answer = await served.http.get(f"/stream/{job_id}?types=step_started,step_completed&types=pipeline_completed")
    names = {block["event"] for block in frames(answer.text)}
    assert names == {"snapshot", "step_started", "step_completed", "pipeline_completed"}


async def test_a_filtered_stream_still_tells_where_it_ended(served: Served):
    job_id, last = await finished(served)
    blocks = frames((await served.http.get(f"/stream/{job_id}?types=step_started")).text)
    assert blocks[-1] == {"id": str(last)}


async def test_an_unknown_type_is_422(served: Served):
    job_id, _ = await finished(served)
    answer = await served.http.get(f"/stream/{job_id}?types=step_startet")
    assert answer.status_code == 422
    assert "step_startet" in answer.json()["detail"]
    assert answer.json()["errors"][0]["name"] == "types"


async def test_many_subscribers_each_get_every_event(served: Served):
    job_id = await served.submit({"text": "a"})

    async def follow() -> list[str]:
        answer = await served.http.get(f"/stream/{job_id}")
        return [block["id"] for block in frames(answer.text) if "id" in block]

    subscribers = [asyncio.create_task(follow()) for _ in range(30)]
    async with working(served):
        seen = await asyncio.gather(*subscribers)
    assert len({tuple(ids) for ids in seen}) == 1
    assert seen[0] == [str(seq) for seq in range(1, len(seen[0]) + 1)]


async def test_streams_end_with_a_retry_when_the_service_drains(served: Served):
    job_id = await served.submit({"text": "a"})
    async with served.http.stream("GET", f"/stream/{job_id}") as answer:
        served.drain.begin()
        text = "".join([chunk async for chunk in answer.aiter_text()])
    assert text.endswith("retry: 1000\n\n")


# --- the response by itself


class Following(Follower):
    """A log that a test writes, and whether somebody follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: asyncio.Queue[LogEntry | LogGap | None] = asyncio.Queue()
        self.followers = 0

    def frames(self) -> JobFrames:
        return JobFrames(lambda: self)

    async def __aenter__(self) -> Following:
        self.followers += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.followers -= 1

    async def batch(self) -> list[LogEntry | LogGap]:
        entry = await self.entries.get()
        return [] if entry is None else [entry]


class Caller:
    """The other side of an ASGI response."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.reading = asyncio.Event()
        self.reading.set()
        self.body = b""
        self.complete = False

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reading.wait()
        self.body += message.get("body", b"")
        if message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)


def entry(seq: int, event_type: EventType) -> LogEntry:
    return LogEntry(seq, encode_body(Event(event_type, "j", 1)))


SCOPE: dict[str, Any] = {"type": "http", "method": "GET"}


async def test_an_idle_stream_sends_pings():
    log, caller = Following(), Caller()
    response = EventStream(log.frames(), drain=Drain(), ping_seconds=0.01)
    task = asyncio.create_task(response(SCOPE, caller.receive, caller.send))
    await wait_until(lambda: caller.body.count(b": ping\n\n") >= 3, "pings arrive")
    log.entries.put_nowait(entry(1, EventType.PIPELINE_COMPLETED))
    await task
    assert caller.complete
    assert log.followers == 0


async def test_trimmed_events_are_told_as_a_gap():
    log, caller = Following(), Caller()
    log.entries.put_nowait(LogGap(1, 7, "trimmed"))
    log.entries.put_nowait(entry(8, EventType.PIPELINE_FAILED))
    await EventStream(log.frames(), drain=Drain())(SCOPE, caller.receive, caller.send)
    gap, end = frames(caller.body.decode())
    assert gap["event"] == "gap"
    assert json.loads(gap["data"]) == {"from": 1, "to": 7, "reason": "trimmed"}
    assert end["id"] == "8"


async def test_a_caller_who_leaves_releases_its_subscription():
    log, caller, left = Following(), Caller(), []

    async def leave() -> None:
        left.append(True)

    response = EventStream(log.frames(), drain=Drain(), on_leave=leave)
    task = asyncio.create_task(response(SCOPE, caller.receive, caller.send))
    await wait_until(lambda: log.followers == 1, "the log is followed")
    caller.left.set()
    await task
    assert log.followers == 0
    assert left == [True]


class Deaf(Following):
    """Takes a cancellation for its own, as redis-py may."""

    async def batch(self) -> list[LogEntry | LogGap]:
        try:
            return await super().batch()
        except asyncio.CancelledError:
            return []


async def test_a_caller_who_leaves_is_let_go_even_where_the_log_does_not_hear_of_it():
    log, caller, left = Deaf(), Caller(), []

    async def leave() -> None:
        left.append(True)

    response = EventStream(log.frames(), drain=Drain(), on_leave=leave)
    task = asyncio.create_task(response(SCOPE, caller.receive, caller.send))
    await wait_until(lambda: log.followers == 1, "the log is followed")
    caller.left.set()
    await task
    assert (log.followers, left) == (0, [True])


async def test_a_request_that_is_cancelled_ends_as_cancelled_and_releases_its_subscription():
    log, caller = Following(), Caller()
    task = asyncio.create_task(EventStream(log.frames(), drain=Drain())(SCOPE, caller.receive, caller.send))
    await wait_until(lambda: log.followers == 1, "the log is followed")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log.followers == 0


async def test_a_caller_who_stops_reading_is_let_go():
    log, caller = Following(), Caller()
    response = EventStream(log.frames(), drain=Drain(), ping_seconds=0.01, stall_seconds=0.05)
    task = asyncio.create_task(response(SCOPE, caller.receive, caller.send))
    await wait_until(lambda: log.followers == 1, "the log is followed")
    caller.reading.clear()
    log.entries.put_nowait(entry(1, EventType.STEP_STARTED))
    await task
    assert log.followers == 0
    assert not caller.complete


async def test_a_log_that_is_closed_early_ends_the_stream_with_a_retry():
    log, caller = Following(), Caller()
    log.entries.put_nowait(entry(1, EventType.STEP_STARTED))
    log.entries.put_nowait(None)
    await EventStream(log.frames(), drain=Drain())(SCOPE, caller.receive, caller.send)
    assert caller.complete
    assert caller.body.endswith(b"retry: 1000\n\n")


async def test_pings_go_on_after_a_moment_in_which_the_caller_took_nothing():
    log, caller = Following(), Caller()
    pump = Pump(caller.send, Drain(), ping=b": ping\n\n", ping_seconds=0.02, stall_seconds=60)
    task = asyncio.create_task(pump.run(log.frames(), caller.receive))
    await wait_until(lambda: log.followers == 1, "the log is followed")
    caller.reading.clear()
    log.entries.put_nowait(entry(1, EventType.STEP_STARTED))
    await wait_until(lambda: pump._writes, "the event is being written")
    timer = pump._timer
    await wait_until(lambda: pump._timer is not timer, "the pump looks whether it is time for a ping")
    caller.reading.set()
    await wait_until(lambda: b": ping" in caller.body, "pings arrive")
    caller.left.set()
    assert await task is End.LEFT


async def test_a_stream_that_was_made_and_never_begun_leaves_nothing_at_its_log():
    held, gate = gated()
    async with serving(held) as service:
        call = asyncio.create_task(service.invoke())
        await wait_until(gate.entered.is_set, "the run is under way")
        (run,) = service.services.runtime._runs
        found, caller, draining = service.services.inline.find(run.job_id), Caller(), Drain()
        assert found is not None
        log, readers = found.log, set(found.log._readers)
        draining.begin()
        frames_of_it = JobFrames(lambda: LocalLog(log).follow(after=0))
        await EventStream(frames_of_it, drain=draining)(SCOPE, caller.receive, caller.send)
        assert log._readers == readers
        gate.opened.set()
        await call


async def test_a_caller_who_stops_reading_has_its_connection_cut(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    made = EventStream.__init__
    impatient = {"ping_seconds": 0.05, "stall_seconds": 0.2}
    monkeypatch.setattr(EventStream, "__init__", lambda self, *given, **more: made(self, *given, **more, **impatient))
    async with serving(shout) as service:
        job_id = await service.submit({"text": "a"})
        (claim,) = await service.store.ledger.claim("writer", 1)
        output = encode_body(Event(EventType.OUTPUT, job_id, 1, data={"value": "x" * 50_000}))
        for _ in range(20):
            await service.store.ledger.append(claim.job_id, 1, [output] * 10, NO_VIEW)
        with socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.setblocking(False)
            loop, address = asyncio.get_running_loop(), httpx.URL(service.url)
            await loop.sock_connect(caller, (address.host, address.port))
            await loop.sock_sendall(caller, f"GET /stream/{job_id} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            await wait_until(stuck, "the server waits for its reader")
            (connection,) = stuck()
            await wait_until(lambda: connection.cycle.disconnected, "the connection is cut")
    assert not caplog.records


def stuck() -> list[HttpToolsProtocol]:
    """The connections whose buffer is full."""
    found = [held for held in gc.get_objects() if isinstance(held, HttpToolsProtocol)]
    return [held for held in found if held.flow is not None and held.flow.write_paused]
