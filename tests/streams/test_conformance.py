"""One log, whatever it is read over: every case runs over every transport, and over both stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.api.harness import Served, serving
from tests.api.pipelines import shout
from tests.contracts.stores import NO_VIEW
from tests.streams.transports import TRANSPORTS, Gap, Read

from pipeserve.events import Event, EventType, encode_body
from pipeserve.jobs import JobStatus
from pipeserve.runtime.memory import MemoryStore
from pipeserve.runtime.ports import Outcome
from pipeserve.settings import StoreSettings
from pipeserve.store import open_store

MIDDLE = 8
"""Events between ``job_queued`` and the end."""
LENGTH = MIDDLE + 2


@pytest.fixture(params=["memory", "valkey"])
async def served(request: pytest.FixtureRequest, deployment_id: str) -> AsyncIterator[Served]:
    """Nobody renews leases here, so they are long."""
    if request.param == "memory":
        async with serving(shout, backend=MemoryStore(lease_seconds=60)) as service:
            yield service
        return
    settings = StoreSettings.from_environment(redis_url=request.getfixturevalue("store_url"), lease_seconds=60)
    async with (
        open_store(settings) as store,
        store.deployment(deployment_id) as backend,
        serving(shout, backend=backend) as service,
    ):
        yield service


@pytest.fixture(params=TRANSPORTS)
def read(request: pytest.FixtureRequest) -> Read:
    return TRANSPORTS[request.param]


class Writer:
    """Writes one job's log, as its worker would."""

    def __init__(self, served: Served, job_id: str) -> None:
        self.job_id = job_id
        self._ledger = served.store.ledger

    @classmethod
    async def begin(cls, served: Served) -> Writer:
        job_id = await served.submit({"text": "a"})
        (claim,) = await served.store.ledger.claim("writer", 1)
        assert claim.job_id == job_id
        return cls(served, job_id)

    async def middle(self, count: int = MIDDLE) -> None:
        kinds = (EventType.OUTPUT, EventType.LOG)
        for index in range(count):
            body = encode_body(Event(kinds[index % 2], self.job_id, 1, data={"index": index}))
            await self._ledger.append(self.job_id, 1, [body], NO_VIEW)

    async def end(self) -> None:
        terminal = encode_body(Event(EventType.PIPELINE_COMPLETED, self.job_id, 1, data={"outputs": {}}))
        outcome = Outcome(JobStatus.COMPLETED, terminal, 0.1, outputs=b"{}")
        assert await self._ledger.finish(self.job_id, 1, [], NO_VIEW, outcome)


async def all_of(events: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    async with asyncio.timeout(30):
        return [event async for event in events]


def seqs(events: list[dict[str, Any]]) -> list[int]:
    return [event["seq"] for event in events]


async def test_who_comes_late_gets_the_whole_log(served: Served, read: Read) -> None:
    writer = await Writer.begin(served)
    await writer.middle()
    await writer.end()
    events = await all_of(read(served.url, writer.job_id, 0, None))
    assert seqs(events) == list(range(1, LENGTH + 1))
    terminal = [event["event_type"] for event in events if EventType(event["event_type"]).terminal]
    assert terminal == [events[-1]["event_type"]] == ["pipeline_completed"]


async def test_two_who_follow_get_the_same_as_it_happens(served: Served, read: Read) -> None:
    writer = await Writer.begin(served)
    readers = [read(served.url, writer.job_id, 0, None) for _ in range(2)]
    firsts = [await anext(reader) for reader in readers]
    assert seqs(firsts) == [1, 1]
    for count in (1, 3, MIDDLE - 4):
        await writer.middle(count)
    await writer.end()
    one, two = [await all_of(reader) for reader in readers]
    assert one == two
    assert seqs(one) == list(range(2, LENGTH + 1))


async def test_from_every_position_one_gets_exactly_what_follows(served: Served, read: Read) -> None:
    writer = await Writer.begin(served)
    await writer.middle()
    await writer.end()
    for after in range(LENGTH + 1):
        events = await all_of(read(served.url, writer.job_id, after, None))
        assert seqs(events) == list(range(after + 1, LENGTH + 1)), f"after {after}"


async def test_who_leaves_and_comes_back_misses_and_repeats_nothing(served: Served, read: Read) -> None:
    writer = await Writer.begin(served)
    got: list[int] = []
    for part in range(MIDDLE):
        await writer.middle(1)
        reader = read(served.url, writer.job_id, len(got), None)
        while len(got) < part + 2:
            got.append((await anext(reader))["seq"])
        await reader.aclose()
    await writer.end()
    got += seqs(await all_of(read(served.url, writer.job_id, len(got), None)))
    assert got == list(range(1, LENGTH + 1))


async def test_only_the_wanted_types_come_and_the_end_is_the_end(served: Served, read: Read) -> None:
    writer = await Writer.begin(served)
    await writer.middle()
    await writer.end()
    for types in ("output", "output,pipeline_completed", "step_failed"):
        events = await all_of(read(served.url, writer.job_id, 0, types))
        whole = await all_of(read(served.url, writer.job_id, 0, None))
        assert events == [event for event in whole if event["event_type"] in types.split(",")]


async def test_every_transport_says_the_same_in_the_same_words(served: Served) -> None:
    writer = await Writer.begin(served)
    await writer.middle()
    await writer.end()
    logs = [await all_of(read(served.url, writer.job_id, 0, None)) for read in TRANSPORTS.values()]
    assert all(log == logs[0] for log in logs)


async def test_what_was_trimmed_is_told_before_the_rest(read: Read, store_url: str, deployment_id: str) -> None:
    settings = StoreSettings.from_environment(redis_url=store_url, lease_seconds=60, event_log_max=100)
    async with (
        open_store(settings) as store,
        store.deployment(deployment_id) as backend,
        serving(shout, backend=backend) as served,
    ):
        writer = await Writer.begin(served)
        await writer.middle(400)
        await writer.end()
        with pytest.raises(Gap) as gap:
            await all_of(read(served.url, writer.job_id, 5, None))
        assert gap.value.first == 6
        rest = await all_of(read(served.url, writer.job_id, gap.value.last, None))
        assert seqs(rest) == list(range(gap.value.last + 1, 403))
