"""Streams as curl shows them, through nginx, by the lines that the documentation gives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import orjson
import pytest
import pytest_asyncio
from tests.programs import needed
from tests.streams.site import Site, Told, running_site
from tests.worker.harness import eventually

pytestmark = pytest.mark.e2e
KEY = "key-of-the-curl-tests"
Events = list[tuple[str | None, str]]
"""What was printed: each event's id, and its type."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[Site]:
    """One for all tests here, with a key."""
    async with running_site(key=KEY) as at:
        yield at


@contextlib.asynccontextmanager
async def curl(*arguments: str) -> AsyncIterator[asyncio.StreamReader]:
    """What ``curl`` prints, while it runs. It has to end by itself, and well."""
    process = await asyncio.create_subprocess_exec(
        needed("curl", "apt-get install curl"), "--silent", "--show-error", *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process.stdout
        assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_curl_prints_each_event_before_the_next_one_happens(site: Site) -> None:
    job = await site.submit(words=3)
    async with curl("-N", "-H", f"Authorization: Bearer {KEY}", f"{site.url}/stream/{job.id}") as printed:
        events = await _read_by_hand(printed, job)
    assert events[0] == (None, "snapshot")
    assert events[1:] == await _logged(site, job)


async def test_curl_goes_on_after_the_number_that_it_names(site: Site) -> None:
    job = await site.submit(words=3)
    job.open(0, 1, 2)
    await site.finished(job)
    logged = await _logged(site, job)
    for line in (["-H", "Last-Event-ID: 3", f"{site.url}/stream/{job.id}"], [f"{site.url}/stream/{job.id}?after=3"]):
        async with curl("-N", "-H", f"X-API-Key: {KEY}", *line) as printed:
            assert await _read_by_hand(printed, job) == logged[3:]
    assert len(logged) > 4


async def test_curl_that_has_read_everything_is_told_204(site: Site) -> None:
    job = await site.submit(words=0)
    await site.finished(job)
    last = len(await site.log_of(job))
    token = await site.token(job)
    url = f"{site.url}/stream/{job.id}?token={token}"
    async with curl("-w", "%{http_code}", "-H", f"Last-Event-ID: {last}", url) as printed:
        assert await printed.read() == b"204"


async def test_curl_needs_nothing_but_a_token_to_follow_a_job(site: Site) -> None:
    job = await site.submit(words=2)
    token = await site.token(job)
    async with curl("-N", f"{site.url}/stream/{job.id}?token={token}") as printed:
        events = await _read_by_hand(printed, job)
    assert events[1:] == await _logged(site, job)


async def test_curl_calls_the_pipeline_and_prints_its_events_as_they_happen(site: Site) -> None:
    job = Told("", site.gates())
    body = orjson.dumps({"parameters": {"gates": str(job.gates), "words": 2}}).decode()
    async with curl(
        *("-N", "-H", f"Authorization: Bearer {KEY}", "-H", "Accept: text/event-stream"),
        *("-H", "Content-Type: application/json", "-d", body, f"{site.url}/invoke"),
    ) as printed:
        events = await _read_by_hand(printed, job)
    assert [number for number, _ in events] == [str(number) for number in range(1, len(events) + 1)]
    assert events[-1][1] == "pipeline_completed"


async def test_a_curl_that_goes_leaves_no_connection_to_a_replica(site: Site) -> None:
    job = await site.submit(words=1)
    with contextlib.suppress(ConnectionError):
        async with curl("-N", "-H", f"Authorization: Bearer {KEY}", f"{site.url}/stream/{job.id}") as printed:
            await printed.readline()
            await site.holder()
            raise ConnectionError("the reader has gone")
    await eventually(lambda: site.connections() == 0, "nginx lets go of the replica")
    job.open(0)
    assert (await site.finished(job))["status"] == "completed"


async def _read_by_hand(printed: asyncio.StreamReader, job: Told) -> Events:
    """Open each gate only when the word before it has been printed."""
    events: Events = []
    words = 0
    fields: dict[str, str] = {}
    async for raw in printed:
        line = raw.decode().rstrip("\n")
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        event = fields.get("event")
        if event is not None:
            events.append((fields.get("id"), event))
        if event == "step_started":
            job.open(0)
        if event == "output":
            words += 1
            job.open(words)
        fields = {}
    return events


async def _logged(site: Site, job: Told) -> Events:
    return [(str(event["seq"]), event["event_type"]) for event in await site.log_of(job)]
