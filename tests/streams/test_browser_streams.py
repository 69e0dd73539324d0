"""A browser's own EventSource and WebSocket, through nginx, on jobs that tell something when the test lets them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from tests.streams.browser import Browser, Page, chromium
from tests.streams.site import Site, Told, running_site
from tests.worker.harness import eventually

from pipeserve.events import EventType

pytestmark = [pytest.mark.e2e, pytest.mark.browser]
KEY = "key-of-the-browser-tests"
CLOSED = 2
FOLLOW = """([url, types]) => {
    window.seen = [];
    window.opened = 0;
    window.source = new EventSource(url);
    source.onopen = () => { window.opened += 1; };
    for (const type of types)
        source.addEventListener(type, (event) => seen.push([type, event.lastEventId, JSON.parse(event.data)]));
}"""
CONNECT = """([url, protocols]) => new Promise((opened) => {
    window.frames_ = [];
    window.closed = null;
    window.socket = new WebSocket(url, protocols);
    socket.onopen = () => opened(socket.protocol);
    socket.onmessage = (event) => frames_.push(JSON.parse(event.data));
    socket.onclose = (event) => { window.closed = event.code; opened(null); };
})"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[Site]:
    """Without a key."""
    async with running_site() as at:
        yield at


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def locked_site() -> AsyncIterator[Site]:
    """With a key."""
    async with running_site(key=KEY) as at:
        yield at


@contextlib.asynccontextmanager
async def following(browser: Browser, site: Site, url: str) -> AsyncIterator[Page]:
    """A page of the service whose EventSource follows ``url``."""
    async with browser.page(f"{site.url}/health") as page:
        await page.run(FOLLOW, [url, ["snapshot", "gap", *EventType]])
        yield page


async def test_an_event_source_is_told_each_event_before_the_next_one_happens(browser: Browser, site: Site) -> None:
    job = await site.submit(words=3)
    async with following(browser, site, f"/stream/{job.id}") as page:
        await _listen_by_hand(page, job, words=3)
        await _until_closed(page)
        await _has_all(page, site, job)
        assert await page.run("seen.filter(([type]) => type === 'snapshot').length") == 1


async def test_after_the_end_an_event_source_asks_once_more_and_stops(browser: Browser, site: Site) -> None:
    job = await site.submit(words=1)
    job.open(0)
    async with following(browser, site, f"/stream/{job.id}") as page:
        await _until_closed(page)
        last = (await site.log_of(job))[-1]["seq"]
        assert await page.run("opened") == 1
        assert [headers.get("last-event-id") for headers in await page.requests()] == [None, str(last)]
    statuses = [call["status"] for call in site.proxy.calls(f"/stream/{job.id}")]
    assert statuses == ["200", "204"]


async def test_a_killed_replica_costs_an_event_source_no_event_and_none_comes_twice(
    browser: Browser, site: Site
) -> None:
    job = await site.submit(words=4)
    async with following(browser, site, f"/stream/{job.id}") as page:
        job.open(0, 1)
        await _heard(page, 2)
        async with site.without(await site.holder()):
            job.open(2)
            await _heard(page, 3)
            job.open(3)
            await _until_closed(page)
        await _has_all(page, site, job)
        assert await page.run("seen.filter(([type]) => type === 'snapshot').length") == 1
        assert len(await page.requests()) == 3, "the first, the one after the death, the one that was told of the end"


async def test_a_page_with_a_token_follows_its_job_and_reconnects_with_it(browser: Browser, locked_site: Site) -> None:
    site = locked_site
    job = await site.submit(words=3)
    token = await site.token(job)
    async with following(browser, site, f"/stream/{job.id}?token={token}") as page:
        job.open(0)
        await _heard(page, 1)
        async with site.without(await site.holder()):
            job.open(1)
            await _heard(page, 2)
        job.open(2)
        await _until_closed(page)
        await _has_all(page, site, job)


@pytest.mark.parametrize("query", ["", "?token=pst_e30.AAAA"])
async def test_a_page_without_a_good_token_is_told_nothing(browser: Browser, locked_site: Site, query: str) -> None:
    job = await locked_site.submit(words=1)
    async with following(browser, locked_site, f"/stream/{job.id}{query}") as page:
        await _until_closed(page)  # for good: a browser does not repeat what was answered 401
        assert await page.run("[opened, seen.length]") == [0, 0]
        assert len(await page.requests()) == 1
    job.open(0)


async def test_one_event_source_follows_several_jobs_across_a_killed_replica(browser: Browser, site: Site) -> None:
    jobs = [await site.submit(words=2), await site.submit(words=2)]
    query = "&".join(f"job={job.id}" for job in jobs)
    async with following(browser, site, f"/events?{query}") as page:
        for job in jobs:
            job.open(0)
        await _heard(page, 2)
        async with site.without(await site.holder()):
            for job in jobs:
                job.open(1)
            await _heard(page, 4)
            await _until_closed(page)
        for job in jobs:
            await _has_all(page, site, job)


async def test_a_websocket_invokes_and_is_told_each_event_before_the_next_one_happens(
    browser: Browser, site: Site
) -> None:
    job = Told("", site.gates())
    async with browser.page(f"{site.url}/health") as page:
        assert await _connect(page, site) == "pipeserve.v1"
        await _send(page, op="invoke", ref="i", parameters={"gates": str(job.gates), "words": 2})
        acknowledged = await _frame(page, op="ack")
        assert acknowledged["ref"] == "i"
        for word in range(2):
            job.open(word)
            await _words_told(page, word + 1)
        assert (await _frame(page, op="end"))["job_id"] == acknowledged["job_id"]
        job = Told(acknowledged["job_id"], job.gates)
        assert await _told_of(page, job) == [event["seq"] for event in await site.log_of(job)]


async def test_a_websocket_follows_two_jobs_at_once(browser: Browser, site: Site) -> None:
    jobs = [await site.submit(words=1), await site.submit(words=1)]
    async with browser.page(f"{site.url}/health") as page:
        await _connect(page, site)
        for job in jobs:
            await _send(page, op="subscribe", ref=job.id, job_id=job.id)
        for job in jobs:
            assert (await _frame(page, op="ack", ref=job.id))["job_id"] == job.id
        for number, job in enumerate(jobs):
            job.open(0)
            await _words_told(page, number + 1)
            await _frame(page, op="end", job_id=job.id)
        for job in jobs:
            assert await _told_of(page, job) == [event["seq"] for event in await site.log_of(job)]


async def test_a_websocket_cancels_a_job_and_pings_meanwhile(browser: Browser, site: Site) -> None:
    job = await site.submit(words=1)
    async with browser.page(f"{site.url}/health") as page:
        await _connect(page, site)
        await _send(page, op="subscribe", ref="s", job_id=job.id, after=0)
        await page.until("() => frames_.some((frame) => frame.event?.event_type === 'step_started')")
        await _send(page, op="ping", ref="p")
        await _frame(page, op="pong", ref="p")
        await _send(page, op="cancel", ref="c", job_id=job.id, reason="enough")
        await _frame(page, op="ack", ref="c")
        await _frame(page, op="end", job_id=job.id)
        last = await page.run("frames_.filter((frame) => frame.op === 'event').at(-1).event.event_type")
    assert last == "pipeline_canceled"
    assert (await site.finished(job))["cancel_reason"] == "enough"


async def test_a_websocket_whose_replica_is_killed_goes_on_by_number_at_the_other(browser: Browser, site: Site) -> None:
    job = await site.submit(words=2)
    async with browser.page(f"{site.url}/health") as page:
        await _connect(page, site)
        await _send(page, op="subscribe", ref="s", job_id=job.id, after=0)
        job.open(0)
        await _words_told(page, 1)
        async with site.without(await site.holder()):
            await page.until("() => closed !== null")
            before = await _told_of(page, job)
            await _connect(page, site)
            await _send(page, op="subscribe", ref="s", job_id=job.id, after=before[-1])
            job.open(1)
            await _frame(page, op="end", job_id=job.id)
            after = await _told_of(page, job)
    assert before + after == [event["seq"] for event in await site.log_of(job)]


async def test_a_websocket_with_a_token_reads_its_job_and_may_do_nothing_else(
    browser: Browser, locked_site: Site
) -> None:
    site = locked_site
    job, foreign = await site.submit(words=1), await site.submit(words=0)
    token = await site.token(job)
    async with browser.page(f"{site.url}/health") as page:
        assert await _connect(page, site) is None, "no token, no handshake"
        assert await _connect(page, site, f"?token={token}") == "pipeserve.v1"
        for ref, frame in {
            "c": {"op": "cancel", "job_id": job.id},
            "f": {"op": "subscribe", "job_id": foreign.id},
        }.items():
            await _send(page, ref=ref, **frame)
            assert (await _frame(page, op="error", ref=ref))["problem"]["code"] == "forbidden"
        await _send(page, op="subscribe", ref="s", job_id=job.id, after=0)
        job.open(0)
        await _frame(page, op="end", job_id=job.id)
        assert await _told_of(page, job) == [event["seq"] for event in await site.log_of(job)]


async def _listen_by_hand(page: Page, job: Told, *, words: int) -> None:
    """Open each gate only when the page has the word before it."""
    await page.until("() => seen.some(([type]) => type === 'step_started')")
    for number in range(words):
        job.open(number)
        await _heard(page, number + 1)


async def _heard(page: Page, words: int) -> None:
    await page.until("(words) => seen.filter(([type]) => type === 'output').length >= words", words)


async def _until_closed(page: Page) -> None:
    await page.until(f"() => source.readyState === {CLOSED}")


async def _has_all(page: Page, site: Site, job: Told) -> None:
    """The page was given every event of the log once, in order, and each with its own number and content."""
    seen: list[list[Any]] = await page.run("seen.filter(([type]) => type !== 'snapshot')")
    assert [data for _, _, data in seen if data["job_id"] == job.id] == await site.log_of(job)
    if all(event_id.isdigit() for _, event_id, _ in seen):
        assert [int(event_id) for _, event_id, _ in seen] == [data["seq"] for _, _, data in seen]


async def _connect(page: Page, site: Site, query: str = "") -> str | None:
    """The subprotocol of a new socket, once it is open; None if it was refused."""
    return await page.run(CONNECT, [f"{site.url.replace('http', 'ws', 1)}/stream{query}", ["pipeserve.v1"]])


async def _send(page: Page, **frame: Any) -> None:
    await page.run("(frame) => socket.send(JSON.stringify(frame))", frame)


async def _frame(page: Page, **members: Any) -> dict[str, Any]:
    """The first frame with these members, once it has come."""
    find = "(m) => frames_.find((frame) => Object.entries(m).every(([name, value]) => frame[name] === value))"

    async def found() -> dict[str, Any] | None:
        return await page.run(find, members)

    return await eventually(found, f"a frame with {members}")


async def _words_told(page: Page, words: int) -> None:
    await page.until("(n) => frames_.filter((frame) => frame.event?.event_type === 'output').length >= n", words)


async def _told_of(page: Page, job: Told) -> list[int]:
    """The numbers of this job's events that have come over the socket."""
    script = "(id) => frames_.filter((f) => f.op === 'event' && f.event.job_id === id).map((f) => f.event.seq)"
    return await page.run(script, job.id)
