"""A thousand callers who never finish what they say: others are answered, and the thousand are cut."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator

import httpx
import pytest
from tests.api.harness import Served, serving
from tests.api.pipelines import shout
from websockets.asyncio.client import connect

from pipeserve_api.http_protocol import HttpProtocol

MANY = 1000
HALF_A_HEAD = b"POST /invoke HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
HALF_A_BODY = (
    b"POST /invoke HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
)


@pytest.fixture(autouse=True)
def enough_files() -> None:
    """Both ends of each connection are this process's."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3 * MANY:
        pytest.skip(f"this system allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (3 * MANY if hard == resource.RLIM_INFINITY else hard, hard))


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(shout) as service:
        yield service


async def slow(served: Served, text: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = httpx.URL(served.url)
    assert url.port is not None
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(text)
    return reader, writer


async def closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True


async def test_a_thousand_slow_connections_keep_nobody_waiting_and_are_cut(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = (b"", HALF_A_HEAD, HALF_A_BODY, b"GET /hea")
    held = [await slow(served, texts[number % len(texts)]) for number in range(MANY)]
    try:
        for _ in range(5):
            assert (await served.http.get("/health", timeout=1)).status_code == 200
        assert (await served.invoke({"text": "a"})).status_code == 200
        # From the next look on, two seconds later at most, what has waited for a moment has waited too long.
        monkeypatch.setattr(HttpProtocol, "head_seconds", 0.0)
        monkeypatch.setattr(HttpProtocol, "body_grace", 0.0)
        async with asyncio.timeout(20):
            assert all(await asyncio.gather(*(closed(reader) for reader, _ in held)))
    finally:
        for _, writer in held:
            writer.close()


async def test_the_patient_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for an answer, follows a stream or holds a socket sends nothing either."""
    monkeypatch.setattr(HttpProtocol, "head_seconds", 0.1)
    monkeypatch.setattr(HttpProtocol, "body_grace", 0.1)
    monkeypatch.setattr(HttpProtocol, "look_every", 0.1)
    async with serving(shout) as served:
        job_id = await served.submit({"text": "a"})
        async with (
            connect(served.url.replace("http", "ws") + "/stream") as socket,
            served.http.stream("GET", f"/stream/{job_id}") as stream,
        ):
            chunks = stream.aiter_text()
            assert "snapshot" in await anext(chunks)
            waiting = asyncio.create_task(served.http.get(f"/jobs/{job_id}", params={"wait": 5}))
            silent, writer = await slow(served, b"")
            async with asyncio.timeout(5):
                assert await closed(silent), "by then all others, which are older, were looked at too"
            writer.close()
            await served.http.post(f"/jobs/{job_id}/cancel")
            assert (await waiting).json()["status"] == "canceled"
            assert "pipeline_canceled" in "".join([text async for text in chunks])
            await socket.send('{"op": "ping", "ref": "1"}')
            assert "pong" in str(await socket.recv())


async def test_a_body_that_comes_slowly_and_steadily_is_taken(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HttpProtocol, "look_every", 0.01)
    monkeypatch.setattr(HttpProtocol, "body_grace", 0.0)
    text = "x" * 4000

    async def parts() -> AsyncIterator[bytes]:
        yield b'{"parameters": {"text": "'
        for start in range(0, len(text), 400):
            yield text[start : start + 400].encode()
            await asyncio.sleep(0.02)
        yield b'"}}'

    answer = await served.http.post("/invoke", content=parts())
    assert answer.json()["outputs"]["length"] == len(text) + 1
