"""The service behind nginx, by the project's own configuration: nothing is held back, and a dead replica is no end."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import psutil
import pytest
import pytest_asyncio
from httpx_sse import EventSource, aconnect_sse
from tests.faults.installation import Part
from tests.streams.nginx import CONFIGURATION
from tests.streams.site import Site, Told, running_site
from tests.worker.harness import eventually
from websockets.asyncio.client import connect

from pipeserve.settings import ServiceSettings
from pipeserve_api.dependencies import MAX_WAIT
from pipeserve_api.sse import PING_SECONDS, STALL_SECONDS

pytestmark = pytest.mark.e2e
DEFAULTS = {name: field.default for name, field in ServiceSettings.model_fields.items()}
LIMIT: int = DEFAULTS["max_body"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[Site]:
    """One for all tests here: each has its own job."""
    async with running_site() as at:
        yield at


async def test_each_event_comes_through_before_the_next_one_happens(site: Site) -> None:
    job = await site.submit(words=3)
    async with site.http() as http, aconnect_sse(http, "GET", f"/stream/{job.id}") as source:
        words, seqs = await _read_by_hand(source, job, words=3)
    assert words == ["word 0", "word 1", "word 2"]
    assert seqs == list(range(1, len(seqs) + 1))


async def test_the_events_of_a_call_come_through_as_they_happen(site: Site) -> None:
    job = Told("", site.gates())
    body = {"parameters": {"gates": str(job.gates), "words": 2}}
    async with site.http() as http, aconnect_sse(http, "POST", "/invoke", json=body) as source:
        words, seqs = await _read_by_hand(source, job, words=2)
    assert words == ["word 0", "word 1"]
    assert seqs == list(range(1, len(seqs) + 1))


async def test_a_stream_goes_on_at_the_other_replica_when_its_own_is_killed(site: Site) -> None:
    job = await site.submit(words=2)
    seen: list[int] = []

    async def read(http: httpx.AsyncClient, *, until: str, **headers: str) -> None:
        async with aconnect_sse(http, "GET", f"/stream/{job.id}", headers=headers) as source:
            async for event in source.aiter_sse():
                seen.extend([] if event.event == "snapshot" else [int(event.id)])
                if event.event == until:
                    await stop.enter_async_context(site.without(await site.holder()))

    async with contextlib.AsyncExitStack() as stop, site.http() as http:
        with pytest.raises(httpx.TransportError):
            await read(http, until="step_started")
        job.open(0, 1)
        await read(http, until="never", **{"Last-Event-ID": str(seen[-1])})
    assert seen == [event["seq"] for event in await site.log_of(job)]


async def test_a_websocket_comes_through_both_ways(site: Site) -> None:
    job = await site.submit(words=2)
    words: list[str] = []
    async with connect(site.url.replace("http", "ws", 1) + "/stream") as socket:
        await socket.send(orjson.dumps({"op": "ping", "ref": "p"}).decode())
        assert orjson.loads(await socket.recv()) == {"op": "pong", "ref": "p"}
        await socket.send(orjson.dumps({"op": "subscribe", "ref": "s", "job_id": job.id, "after": 0}).decode())
        job.open(0)
        async for text in socket:
            frame = orjson.loads(text)
            if frame["op"] == "event" and frame["event"]["event_type"] == "output":
                words.append(frame["event"]["data"]["value"])
                job.open(len(words))
            if frame["op"] == "end":
                break
    assert words == ["word 0", "word 1"]


async def test_while_a_replica_is_dead_every_request_is_answered_by_the_other(site: Site) -> None:
    async with site.without(site.apis[0]), site.http() as http:
        looks = await asyncio.gather(*(http.get("/health/ready") for _ in range(20)))
        calls = await asyncio.gather(*(http.post("/invoke", json=_at_once(site)) for _ in range(20)))
    assert {answer.status_code for answer in looks} == {200}
    assert {answer.status_code for answer in calls} == {200}


async def test_a_call_that_was_sent_to_a_dying_replica_is_not_sent_to_another(site: Site) -> None:
    gates = site.gates()
    async with site.http() as http:
        calling = asyncio.create_task(http.post("/invoke", json={"parameters": {"gates": str(gates)}}))
        async with site.without(await _runner(site, Told("", gates), calling)):
            answer = await calling
    assert answer.status_code == 502
    assert len((gates / "begun").read_text().splitlines()) == 1


async def test_a_replica_that_drains_ends_its_calls_and_new_ones_go_to_the_other(site: Site) -> None:
    job = Told("", site.gates())
    async with site.http() as http:
        calling = asyncio.create_task(http.post("/invoke", json={"parameters": {"gates": str(job.gates), "words": 1}}))
        draining = await _runner(site, job, calling)
        # nginx now has open connections to both, and keeps them for a while.
        await asyncio.gather(*(http.get("/health") for _ in range(20)))
        draining.signal(signal.SIGTERM)
        await eventually(lambda: _refuses(site, draining), "the replica drains")
        answers = [await http.post("/invoke", json=_at_once(site)) for _ in range(10)]
        job.open(0)
        last = await calling
        await draining.ended()
        async with site.without(draining):
            pass
    assert [answer.status_code for answer in answers] == [200] * 10, answers[0].text
    assert last.status_code == 200, last.text


async def test_a_caller_who_leaves_nginx_cancels_its_run(site: Site) -> None:
    job = Told("", site.gates())
    async with site.http() as http:
        calling = asyncio.create_task(http.post("/invoke", json={"parameters": {"gates": str(job.gates)}}))
        await _runner(site, job, calling)
        calling.cancel()
        await asyncio.wait([calling])
    await eventually((job.gates / "canceled").exists, "the run is canceled")


async def test_a_body_of_the_largest_size_goes_through_and_one_byte_more_is_refused_as_the_api_refuses_it(
    site: Site,
) -> None:
    body = orjson.dumps(_at_once(site)).ljust(LIMIT)
    headers = {"Content-Type": "application/json"}
    async with site.http() as http:
        fits = await http.post("/invoke?mode=async", content=body, headers=headers)
        refused = await http.post("/invoke", content=body + b" ", headers=headers)
        in_chunks = await http.post("/invoke", content=_chunks(body + b" "), headers=headers)
    async with httpx.AsyncClient(base_url=site.urls[0]) as direct:
        words = await direct.post("/invoke", content=body + b" ", headers=headers)
    assert fits.status_code == 202
    for answer in (refused, in_chunks):
        assert answer.status_code == words.status_code == 413
        assert answer.headers["content-type"] == words.headers["content-type"] == "application/problem+json"
        # An error's title is a word of Python's, and differs by version; nginx does not know the path's name.
        varying = {"detail", "title", "instance"}
        assert {name: value for name, value in answer.json().items() if name not in varying} == {
            name: value for name, value in words.json().items() if name not in varying
        }
    assert [call["upstream"] for call in site.proxy.calls("/invoke") if call["status"] == "413"] == ["", ""]


async def test_json_is_compressed_and_events_are_not(site: Site) -> None:
    job = await site.submit(words=1)
    job.open(0)
    await site.finished(job)
    async with site.http() as http:
        headers = {"Accept-Encoding": "gzip"}
        document = await http.get("/openapi.json", headers=headers)
        events = await http.get(f"/stream/{job.id}", headers=headers)
    assert document.headers["content-encoding"] == "gzip"
    assert len(events.content) > 1024, "long enough to be worth compressing"
    assert "content-encoding" not in events.headers


async def test_no_log_has_a_token(site: Site) -> None:
    async with site.http() as http:
        assert (await http.get("/health?token=pst_hidden")).status_code == 200
        assert (await http.post("/invoke?token=pst_hidden", content=b" " * (LIMIT + 1))).status_code == 413
        async with site.without(site.apis[0]):
            await asyncio.gather(*(http.get("/health/live?token=pst_hidden") for _ in range(10)))
    assert site.proxy.calls("/health/live")
    assert "pst_hidden" not in site.proxy.access_log + site.proxy.errors


async def test_nginx_runs_without_root_and_complains_of_nothing(site: Site) -> None:
    master = psutil.Process(site.proxy.process.pid)
    assert all(process.uids().effective != 0 for process in [master, *master.children()])
    assert not [line for line in site.proxy.errors.splitlines() if "[warn]" in line or "[emerg]" in line]


def test_the_configuration_fits_the_defaults_of_the_service() -> None:
    text = CONFIGURATION.read_text()
    streams, *more, all_else = (int(seconds) for seconds in re.findall(r"proxy_read_timeout (\d+)s;", text))
    assert min(streams, *more) > 2 * PING_SECONDS
    assert all_else > max(MAX_WAIT, DEFAULTS["sync_wait"])
    assert _value(text, "client_max_body_size") == LIMIT
    assert _value(text, "send_timeout") > STALL_SECONDS
    assert "event-stream" not in re.search(r"gzip_types ([^;]*);", text)[1]  # type: ignore[index]


async def _read_by_hand(source: EventSource, job: Told, *, words: int) -> tuple[list[str], list[int]]:
    """Open each gate only when the word before it has come. Returns the words, and all events' numbers."""
    heard: list[str] = []
    seqs: list[int] = []
    async for event in source.aiter_sse():
        if event.event == "snapshot":
            continue
        seqs.append(int(event.id))
        if event.event == "step_started":
            job.open(0)
        if event.event == "output":
            heard.append(event.json()["data"]["value"])
            job.open(len(heard))
    assert len(heard) == words
    return heard, seqs


def _at_once(site: Site) -> dict[str, Any]:
    """The body of a call that waits for nothing."""
    return {"parameters": {"gates": str(site.gates()), "words": 0}}


async def _runner(site: Site, job: Told, calling: asyncio.Task[httpx.Response]) -> Part:
    """The API process in which the step of this synchronous call has begun."""
    begun = job.gates / "begun"

    def has_begun() -> bool:
        assert not calling.done(), calling.result().text
        return begun.exists() and begun.read_text().endswith("\n")

    await eventually(has_begun, "the step begins")
    pid = int(begun.read_text().split()[1])
    return next(api for api in site.apis if api.pid == pid)


async def _refuses(site: Site, api: Part) -> bool:
    async with httpx.AsyncClient() as http:
        try:
            await http.get(f"{site.urls[site.apis.index(api)]}/health/live")
        except httpx.ConnectError:
            return True
    return False


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 65_536):
        yield body[at : at + 65_536]


def _value(text: str, directive: str) -> int:
    found = re.search(rf"{directive} (\d+)", text)
    assert found, directive
    return int(found[1])
