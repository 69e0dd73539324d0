"""A service of canned replies: what a client gets, byte for byte, and what it sent."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
import uvicorn
from pydantic_core import to_json


@dataclass(frozen=True)
class Canned:
    """One reply. ``chunks`` leave one by one; ``breaks`` cuts the connection after them, in the middle of the body."""

    status: int = 200
    chunks: Sequence[bytes] = ()
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    breaks: bool = False


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class CannedService:
    """An ASGI application that answers each path with its replies in turn, the last one again and again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.received: list[Received] = []
        self._replies: defaultdict[str, deque[Canned]] = defaultdict(deque)

    def answer(self, route: str, *replies: Canned) -> None:
        """``route`` is as in ``"GET /jobs/1"``."""
        self._replies[route].extend(replies)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.received.append(Received(scope["method"], scope["path"], scope["query_string"].decode(), headers, body))
        replies = self._replies[f"{scope['method']} {scope['path']}"]
        reply = replies.popleft() if len(replies) > 1 else replies[0]
        out = {"content-type": reply.content_type, **reply.headers}
        encoded = [(name.encode(), value.encode()) for name, value in out.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": encoded})
        for chunk in reply.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await asyncio.sleep(0)
        if reply.breaks:
            raise ConnectionError("canned: the connection breaks here")
        await send({"type": "http.response.body", "body": b""})


class CannedServer:
    """A uvicorn in a thread, for all tests: starting one for each would take longer than the tests do."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.service: CannedService | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert self.service is not None
        await self.service(scope, receive, send)


@pytest.fixture(scope="session")
def canned_server() -> Iterator[CannedServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = CannedServer(f"http://127.0.0.1:{listener.getsockname()[1]}")
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield app
        server.should_exit = True
        thread.join()


@pytest.fixture
def service(canned_server: CannedServer) -> CannedService:
    canned_server.service = CannedService(canned_server.url)
    return canned_server.service


def sse(*seqs: int, job_id: str = "j", last: str = "step_completed") -> bytes:
    """The stream's text for events of these numbers; the last one has the type ``last``."""
    return b"".join(
        b"id: %d\nevent: %b\ndata: %b\n\n"
        % (seq, kind.encode(), orjson.dumps(event(seq, last if seq == seqs[-1] else "step_completed", job_id)))
        for seq in seqs
        for kind in [last if seq == seqs[-1] else "step_completed"]
    )


def event(seq: int, event_type: str, job_id: str = "j") -> dict[str, Any]:
    return {
        "seq": seq,
        "event_type": event_type,
        "job_id": job_id,
        "attempt": 1,
        "timestamp": "2026-01-31T12:00:00.000000Z",
        "data": {},
    }


def job(status: str, **members: Any) -> dict[str, Any]:
    """A job's record as the service shows it."""
    return {
        "job_id": "j",
        "run_id": "j",
        "run_name": "run",
        "status": status,
        "pipeline_name": "p",
        "deployment_id": "d",
        "created_at": "2026-01-31T12:00:00Z",
        "links": {
            "self": "/jobs/j",
            "events": "/jobs/j/events",
            "stream": "/stream/j",
            "cancel": "/jobs/j/cancel",
            "result": "/jobs/j/result",
        },
        **members,
    }


def canned(body: Any, status: int = 200, **headers: str) -> Canned:
    return Canned(status, [to_json(body)], headers=headers)


def stream(*chunks: bytes, breaks: bool = False) -> Canned:
    return Canned(200, chunks, content_type="text/event-stream", breaks=breaks)


def problem(status: int, code: str, *, retry_after: str | None = None, **members: Any) -> Canned:
    body = {"type": f"urn:pipeserve:problem:{code}", "title": "t", "status": status, "detail": "why", "code": code}
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return Canned(status, [orjson.dumps({**body, **members})], content_type="application/problem+json", headers=headers)
