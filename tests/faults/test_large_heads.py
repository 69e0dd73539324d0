"""Requests whose URL, headers or trailers have no end: refused while they come, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from tests.api.harness import Served, serving
from tests.api.pipelines import shout

from pipeserve_api.http_protocol import MOST_HEAD, MOST_URL

CHUNK = b"a" * 16_384
MUCH = 64 * 1024 * 1024
"""Bytes: whoever could send as many has met no limit."""
CHUNKED = b"POST /invoke HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(shout) as service:
        yield service


async def connected(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = httpx.URL(served.url)
    return await asyncio.open_connection(url.host, url.port)


async def answer_to(served: Served, request: bytes) -> tuple[int, dict[str, str]]:
    """Status and problem that ``request`` gets on a connection of its own, which is closed then."""
    reader, writer = await connected(served)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    assert b"content-type: application/problem+json" in head, head
    assert b"x-content-type-options: nosniff" in head
    return int(head.split()[1]), json.loads(body)


def request_with(*, path: str = "/health", headers: bytes = b"") -> bytes:
    return b"GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (path.encode(), headers)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(request_with(path="/jobs?x=" + "a" * MOST_URL), 414, id="a long URL"),
        pytest.param(request_with(headers=b"X: %s\r\n" % (b"a" * MOST_HEAD)), 431, id="one long header"),
        pytest.param(request_with(headers=b"X: a\r\n" * 3000), 431, id="many short headers"),
    ],
)
async def test_what_is_too_large_gets_a_problem_with_the_limit(served: Served, request_: bytes, status: int) -> None:
    got, problem = await answer_to(served, request_)
    assert got == status
    assert problem["code"] == "bad_request"
    assert problem["status"] == status
    assert str(MOST_URL if status == 414 else MOST_HEAD) in problem["detail"]


async def test_what_is_no_request_gets_a_problem_too(served: Served) -> None:
    status, problem = await answer_to(served, b"\x16\x03\x01 no HTTP at all\r\n\r\n")
    assert (status, problem["code"]) == (400, "bad_request")


async def test_what_is_just_small_enough_is_served(served: Served) -> None:
    path = "/health?x="
    headers = {"x-long": "a" * (MOST_HEAD - MOST_URL - 1000)}
    answer = await served.http.get(path + "a" * (MOST_URL - len(path)), headers=headers)
    assert answer.status_code == 200


async def test_each_request_of_a_connection_is_counted_for_itself(served: Served) -> None:
    for _ in range(5):
        answer = await served.http.get("/health", headers={"x-long": "a" * (MOST_HEAD // 2)})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        pytest.param(b"GET /", CHUNK, id="a URL"),
        pytest.param(b"GET / HTTP/1.1\r\nX: ", CHUNK, id="a header"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"X: a\r\n" * 1000, id="headers"),
        pytest.param(b"GET / HTTP/1.1\r\n", CHUNK, id="a header's name"),
        pytest.param(CHUNKED + b"2;", CHUNK, id="a chunk's extension"),
        pytest.param(CHUNKED + b"2\r\n{}\r\n0\r\nX: ", CHUNK, id="a trailer"),
        pytest.param(CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: a\r\n" * 1000, id="trailers"),
    ],
)
async def test_what_never_ends_is_cut_soon(served: Served, beginning: bytes, piece: bytes) -> None:
    _, writer = await connected(served)
    try:
        sent = 0
        with pytest.raises(ConnectionError):  # noqa: PT012 - each write may be the one that fails
            writer.write(beginning)
            while sent < MUCH:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
    finally:
        writer.close()
    assert sent < MUCH
    assert (await served.http.get("/health")).status_code == 200


async def test_an_answer_that_is_under_way_is_not_broken_by_the_next_request(served: Served) -> None:
    """Pipelined: what is refused then may not stand in the middle of the answer before it."""
    job_id = await served.submit({"text": "a"})
    reader, writer = await connected(served)
    try:
        writer.write(b"GET /stream/%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % job_id.encode())
        async with asyncio.timeout(10):
            before = await reader.readuntil(b"snapshot")
            writer.write(request_with(path="/" + "a" * MOST_URL))
            try:
                after = await reader.read()
            except ConnectionError:
                after = b""
    finally:
        writer.close()
    assert before.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1" not in after


async def test_json_that_nests_too_deeply_is_a_bad_request(served: Served) -> None:
    deep = b'{"parameters": {"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    for path in ("/invoke", "/invoke?mode=async", "/invoke/batch"):
        answer = await served.http.post(path, content=deep, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert answer.json()["code"] == "bad_request"


HANDSHAKE = (
    b"Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize(
    ("line", "headers", "status"),
    [
        pytest.param(b"GET /stream HTTP/1.1", b"X: %s\r\n" % (b"a" * 9000), 431, id="a long header"),
        pytest.param(b"GET /stream HTTP/1.1", b"X: a\r\n" * 200, 431, id="many headers"),
        pytest.param(b"GET /stream?x=%s HTTP/1.1" % (b"a" * 9000), b"", 414, id="a long URL"),
        pytest.param(b"POST /stream HTTP/1.1", b"", 405, id="another method"),
        pytest.param(b"GET /stream HTTP/1.1", b"Content-Length: 2\r\n", 400, id="a body"),
    ],
)
async def test_a_handshake_that_can_not_be_read_is_answered_and_closed(
    served: Served, line: bytes, headers: bytes, status: int
) -> None:
    reader, writer = await connected(served)
    try:
        writer.write(line + b"\r\n" + HANDSHAKE + headers + b"\r\n")
        async with asyncio.timeout(10):
            answer = await reader.read()
    finally:
        writer.close()
    assert int(answer.split()[1]) == status, answer
