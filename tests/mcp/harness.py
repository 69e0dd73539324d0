"""Runs ``pipeserve mcp`` as a process of its own, and talks to it with the SDK's client, as agents do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, LoggingMessageNotificationParams
from tests.api.harness import Served, serving, wait_until
from tests.api.worker import working
from tests.cli.conftest import COMMAND, environment

from pipeserve.sdk.pipeline import Pipeline

ERAS = ("auto", "legacy")
"""How the SDK's client connects: by the newest protocol, and by the handshake of the earlier ones."""


@dataclass
class Agent:
    """A connected MCP client, and what it was told."""

    client: Client
    log: list[LoggingMessageNotificationParams] = field(default_factory=list)
    notified: list[str] = field(default_factory=list)
    progress: list[tuple[float, float | None, str | None]] = field(default_factory=list)

    async def call(self, name: str, *, watch: bool = False, **arguments: Any) -> CallToolResult:
        """Call a tool. ``watch``: with a progress token."""
        return await self.client.call_tool(name, arguments, progress_callback=self._progressed if watch else None)

    async def read(self, uri: str) -> Any:
        """The one content of a resource."""
        [content] = (await self.client.read_resource(uri)).contents
        return content

    async def _progressed(self, progress: float, total: float | None, message: str | None) -> None:
        self.progress.append((progress, total, message))


@asynccontextmanager
async def served_with_worker(pipeline: Pipeline[..., Any], **settings: Any) -> AsyncIterator[Served]:
    """A service and a worker, over real HTTP."""
    async with serving(pipeline, **settings) as served, working(served):
        yield served


@asynccontextmanager
async def agent_on_stdio(
    folder: Path, *arguments: str, era: str = "auto", env: dict[str, str] | None = None, **options: Any
) -> AsyncIterator[Agent]:
    """Start ``pipeserve mcp`` and talk to it through its standard streams."""
    command, *words = [*COMMAND, "mcp", *arguments]
    with (folder / "errors").open("w") as errors:
        server = StdioServerParameters(command=command, args=words, env=environment(folder / "data", env))
        async with _connected(stdio_client(server, errlog=errors), era, **options) as agent:
            yield agent


@asynccontextmanager
async def agent_over_http(
    address: str, *, era: str = "auto", key: str | None = None, **options: Any
) -> AsyncIterator[Agent]:
    """Talk to a ``pipeserve mcp --transport http`` that runs."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        _connected(streamable_http_client(address, http_client=http), era, **options) as agent,
    ):
        yield agent


@dataclass(frozen=True)
class Speaking:
    """A running ``pipeserve mcp --transport http``."""

    address: str
    process: asyncio.subprocess.Process
    said: Path


@asynccontextmanager
async def speaking_http(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> AsyncIterator[Speaking]:
    """Run it on a free port until the block ends."""
    said = folder / "said"
    with said.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, "mcp", "--transport", "http", "--port", "0", *arguments),
            env=environment(folder / "data", env),
            stdout=out,
            stderr=asyncio.subprocess.STDOUT,
        )
    try:
        pattern = re.compile(r"^MCP at (\S+)$", re.MULTILINE)
        await wait_until(
            lambda: pattern.search(said.read_text()) or process.returncode is not None, "it listens", seconds=30
        )
        found = pattern.search(said.read_text())
        assert found is not None, said.read_text()
        yield Speaking(found[1], process, said)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def agent_by(transport: str, url: str, folder: Path, *arguments: str, **options: Any) -> AsyncIterator[Agent]:
    """Talk to ``pipeserve mcp`` by either transport."""
    if transport == "stdio":
        async with agent_on_stdio(folder, "--url", url, *arguments, **options) as agent:
            yield agent
    else:
        async with (
            speaking_http(folder, "--url", url, *arguments) as speaking,
            agent_over_http(speaking.address, **options) as agent,
        ):
            yield agent


@asynccontextmanager
async def _connected(transport: Any, era: str, **options: Any) -> AsyncIterator[Agent]:
    async def logged(params: LoggingMessageNotificationParams) -> None:
        agent.log.append(params)

    async def received(message: Any) -> None:
        agent.notified.append(getattr(message, "method", type(message).__name__))

    client = Client(transport, mode=era, logging_callback=logged, message_handler=received, **options)
    agent = Agent(client)
    async with client:
        yield agent


def text_of(result: CallToolResult) -> str:
    """The result's text, its blocks one after the other."""
    return "\n".join(block.text for block in result.content if block.type == "text")
