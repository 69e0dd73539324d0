"""MCP over streamable HTTP, at ``/mcp``: one process for many clients."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import orjson
import uvicorn

from pipeserve.client import AsyncClient
from pipeserve.errors import UnauthorizedError
from pipeserve.mcp.server import Leaving, PipelineServer

PATH = "/mcp"
_DRAIN_SECONDS = 1
"""For which a call that is under way may go on once the process is told to end; its job goes on anyway."""


async def serve_http(
    client: AsyncClient, listener: socket.socket, *, key: str | None, jobs: bool, ready: Callable[[], None]
) -> None:
    """Serve until SIGTERM or SIGINT. ``key``: what callers have to present; ``ready`` is called once they can come."""
    leaving = Leaving()
    app: Any = PipelineServer(client, leaving, jobs=jobs).streamable_http_app(
        streamable_http_path=PATH, host=listener.getsockname()[0]
    )
    config = uvicorn.Config(
        app if key is None else KeyGuard(app, key),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    await _Server(config, leaving, ready).serve(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, leaving: Leaving, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._leaving = leaving
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._leaving.begin()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._leaving.begin()
        await super().shutdown(sockets)


class KeyGuard:
    """Lets only requests with the key through to ``app``."""

    def __init__(self, app: Any, key: str) -> None:
        self._app = app
        self._key = f"bearer {key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        if scope["type"] == "http" and not self._presented(scope["headers"]):
            await _refuse(send)
        else:
            await self._app(scope, receive, send)

    def _presented(self, headers: list[tuple[bytes, bytes]]) -> bool:
        given = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        return hmac.compare_digest(scheme.lower() + b" " + key.strip(), self._key)


async def _refuse(send: Any) -> None:
    problem = UnauthorizedError("The key of the service is needed, as `Authorization: Bearer KEY`.").problem()
    headers = [(b"content-type", b"application/problem+json"), (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps(problem.as_dict())})
