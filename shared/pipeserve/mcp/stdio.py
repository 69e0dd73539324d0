"""MCP on standard input and output: the client starts this process, and ends it by closing its input."""

from __future__ import annotations

import signal
from typing import Any, Self

from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage

from pipeserve.client import AsyncClient
from pipeserve.mcp.server import Leaving, PipelineServer

_Item = SessionMessage | Exception


async def serve_stdio(client: AsyncClient, *, jobs: bool) -> None:
    """Serve one client until it closes our input."""
    # The thread that reads our input can't be interrupted. Jobs live elsewhere, so nothing is lost by just dying.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    leaving = Leaving()
    server = PipelineServer(client, leaving, jobs=jobs)
    async with stdio_server() as (incoming, outgoing):
        watched: Any = _Input(incoming, leaving)  # the SDK's protocol for it is private
        await server.run(watched, outgoing, server.create_initialization_options())


class _Input:
    """The stream of what the client sends. At its end the SDK cancels all calls, and their jobs must know why."""

    def __init__(self, stream: Any, leaving: Leaving) -> None:
        self._stream = stream
        self._leaving = leaving

    @property
    def last_context(self) -> Any:
        """The SDK looks for it: the context in which the latest message was sent."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> _Item:
        return await self._stream.receive()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Item:
        try:
            return await self._stream.__anext__()
        except StopAsyncIteration:
            self._leaving.begin()
            raise

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exception: Any) -> bool | None:
        return await self._stream.__aexit__(*exception)
