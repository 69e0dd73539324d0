"""The WebSocket ``/stream``: flow control by credit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.api.harness import Served, serving
from tests.api.pipelines import shout
from tests.api.socket_client import Frame, Socket, seqs, socket

from pipeserve.events import Event, EventType, encode_body
from pipeserve.runtime.follower import Follower
from pipeserve.runtime.ports import LogEntry, LogGap, RunView
from pipeserve_api.drain import Drain
from pipeserve_api.lookup import JobLog
from pipeserve_api.socket.credit import Credit
from pipeserve_api.socket.sender import Sender
from pipeserve_api.socket.subscription import Subscription

PROGRESS, OUTPUT = EventType.PROGRESS_UPDATE, EventType.OUTPUT


async def job_with(served: Served, kinds: list[EventType]) -> str:
    """A running job whose log has these events after ``job_queued``."""
    job_id = await served.submit({"text": "a"})
    (claim,) = await served.store.ledger.claim("test-worker", 1)
    assert claim.job_id == job_id
    await tell(served, job_id, kinds)
    return job_id


async def tell(served: Served, job_id: str, kinds: list[EventType]) -> None:
    bodies = [encode_body(Event(kind, job_id, 1, data={"index": index})) for index, kind in enumerate(kinds)]
    await served.store.ledger.append(job_id, 1, bodies, RunView())


def check_numbers(frames: list[Frame], after: int) -> int:
    """Each event follows the last one, but for the progress it says it stands for. Returns the last number."""
    for frame in frames:
        if frame["op"] == "event":
            assert frame["event"]["seq"] == after + 1 + frame.get("coalesced", 0)
            after = frame["event"]["seq"]
    return after


async def events(client: Socket, count: int) -> list[Frame]:
    return [await client.find(lambda frame: frame["op"] == "event") for _ in range(count)]


async def test_without_credit_events_wait_and_each_costs_one():
    async with serving(shout) as served, socket(served) as client:
        job_id = await job_with(served, [OUTPUT] * 20)
        await client.send("credit", n=3)
        await client.send("subscribe", ref="s", job_id=job_id, after=0)
        assert (await client.answer("s"))["op"] == "ack"
        assert seqs(await events(client, 3)) == [1, 2, 3]
        assert await client.pong() == []
        await client.send("credit", n=2)
        assert seqs(await events(client, 2)) == [4, 5]
        assert await client.pong() == []


async def test_progress_that_was_overtaken_is_left_out_and_counted():
    async with serving(shout) as served, socket(served) as client:
        job_id = await job_with(served, [PROGRESS] * 10 + [OUTPUT, PROGRESS, PROGRESS, OUTPUT])
        first = (await served.http.get(f"/jobs/{job_id}/events")).json()["events"][-14]["seq"]
        await client.send("credit", n=1)
        await client.send("subscribe", job_id=job_id, after=first - 2)
        await events(client, 1)
        assert [frame["op"] for frame in await client.pong()] == ["ack"]
        await client.send("credit", n=2)
        collapsed, output = await events(client, 2)
        assert (collapsed["event"]["seq"], collapsed["coalesced"]) == (first + 9, 9)
        assert (output["event"]["event_type"], "coalesced" in output) == ("output", False)


async def test_with_credit_no_progress_is_left_out():
    async with serving(shout) as served, socket(served) as client:
        job_id = await job_with(served, [PROGRESS] * 50)
        await client.send("credit", n=1000)
        await client.send("subscribe", job_id=job_id, after=0)
        frames = await events(client, 50)
        assert seqs(frames) == list(range(1, 51))
        assert not any("coalesced" in frame for frame in frames)


async def test_credit_is_shared_by_the_jobs_of_a_socket():
    async with serving(shout) as served, socket(served) as client:
        first = await job_with(served, [OUTPUT] * 50)
        second = await job_with(served, [OUTPUT] * 50)
        await client.send("credit", n=1)
        for job_id in (first, second):
            await client.send("subscribe", ref=job_id, job_id=job_id, after=0)
            await client.answer(job_id)
        await client.send("credit", n=41)
        counts = dict.fromkeys((first, second), 0)
        for frame in await events(client, 42):
            counts[frame["event"]["job_id"]] += 1
        assert max(counts.values()) - min(counts.values()) <= 2


async def test_a_job_that_was_silent_does_not_catch_up_at_the_others_expense():
    async with serving(shout) as served, socket(served) as client:
        busy = await job_with(served, [OUTPUT] * 200)
        silent = await job_with(served, [])
        await client.send("subscribe", ref="s", job_id=silent, after=0)
        await client.answer("s")
        await client.send("credit", n=101)
        await client.send("subscribe", ref="b", job_id=busy, after=0)
        await events(client, 101)
        await tell(served, silent, [OUTPUT] * 50)
        jobs: list[str] = []
        for _ in range(20):
            await client.send("credit", n=1)
            jobs += [frame["event"]["job_id"] for frame in await events(client, 1)]
        assert 9 <= jobs.count(busy) <= 11


async def test_an_unsubscribed_job_gives_its_place_in_line_to_the_others():
    async with serving(shout) as served, socket(served) as client:
        first = await job_with(served, [OUTPUT] * 5)
        second = await job_with(served, [OUTPUT] * 5)
        await client.send("credit", n=1)
        await client.send("subscribe", ref="1", job_id=first, after=0)
        await events(client, 1)
        await client.send("subscribe", ref="2", job_id=second, after=0)
        await client.send("unsubscribe", ref="3", job_id=first)
        await client.answer("3")
        await client.send("credit", n=4)
        frames = await events(client, 4)
        assert {frame["event"]["job_id"] for frame in frames} == {second}
        assert seqs(frames) == [1, 2, 3, 4]


async def test_credit_for_an_event_that_was_not_sent_goes_to_the_next():
    blocked, tape, credit = asyncio.Event(), Tape(), Credit()
    credit.grant(1)
    await tape.tell(OUTPUT)

    async def send(_: object) -> None:
        blocked.set()
        await asyncio.Event().wait()

    subscription = following(tape, credit, Sender(send))
    subscription.start()
    await blocked.wait()
    turn = credit.ask()
    await subscription.stop()
    await asyncio.wait_for(turn, 5)


class Tape(JobLog):
    """A log that comes bit by bit."""

    def __init__(self) -> None:
        self._bodies: list[bytes] = []
        self._more = asyncio.Condition()

    async def tell(self, *kinds: EventType) -> None:
        async with self._more:
            self._bodies += [encode_body(Event(kind, "job", 1)) for kind in kinds]
            self._more.notify_all()

    async def read(self, *, after: int, limit: int) -> list[LogEntry | LogGap]:
        return [LogEntry(after + 1 + index, body) for index, body in enumerate(self._bodies[after : after + limit])]

    def follow(self, *, after: int) -> Follower:
        return TapeFollower(self, after)

    async def next(self, after: int) -> LogEntry:
        async with self._more:
            while len(self._bodies) <= after:
                await self._more.wait()
        return LogEntry(after + 1, self._bodies[after])


class TapeFollower(Follower):
    def __init__(self, tape: Tape, after: int) -> None:
        super().__init__()
        self._tape = tape
        self._after = after

    async def batch(self) -> Sequence[LogEntry | LogGap]:
        entry = await self._tape.next(self._after)
        self._after += 1
        return [entry]

    async def __aexit__(self, *_: object) -> None:
        pass


def following(tape: Tape, credit: Credit, sender: Sender) -> Subscription:
    return Subscription(
        "job",
        tape,
        after=0,
        types=None,
        sender=sender,
        credit=credit,
        drain=Drain(),
        instance="/stream",
        on_end=lambda ended: None,
    )


STEPS = st.lists(
    st.one_of(
        st.lists(st.sampled_from([PROGRESS, PROGRESS, OUTPUT, EventType.LOG]), min_size=1, max_size=6),
        st.integers(1, 4),
        st.just("pause"),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_no_event_is_lost_whatever_the_credits(steps: list[list[EventType] | int | str]):
    asyncio.run(_follow_on_credit(steps))


async def _follow_on_credit(steps: list[list[EventType] | int | str]) -> None:
    sent: list[Frame] = []

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(json.loads(message["text"]))

    credit, tape, told, granted = Credit(), Tape(), [EventType.JOB_QUEUED], 1
    credit.grant(1)
    await tape.tell(*told)
    subscription = following(tape, credit, Sender(send))
    task = subscription.start()
    for step in steps:
        if isinstance(step, list):
            told += step
            await tape.tell(*step)
        elif isinstance(step, int):
            granted += step
            credit.grant(step)
        else:
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(seqs(sent)) <= granted
    told.append(EventType.PIPELINE_COMPLETED)
    await tape.tell(told[-1])
    credit.grant(len(told))
    await task
    assert sent[-1] == {"op": "end", "job_id": "job"}
    assert check_numbers(sent, 0) == len(told)
    there = set(seqs(sent))
    assert all(told[seq - 1] is PROGRESS for seq in range(1, len(told) + 1) if seq not in there)
