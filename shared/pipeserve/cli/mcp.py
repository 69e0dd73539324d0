"""``pipeserve mcp``: a running service's pipeline as a tool for agents, on stdio or over HTTP."""

from __future__ import annotations

import asyncio
import socket
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipeserve.cli.extras import require_mcp
from pipeserve.cli.options import DEFAULT_URL, ApiKey, Url
from pipeserve.cli.output import tell
from pipeserve.errors import ConfigurationError, PipeserveError
from pipeserve.settings import is_loopback

if TYPE_CHECKING:
    from pipeserve.client import AsyncClient


class Transport(StrEnum):
    """How the MCP client reaches this process."""

    STDIO = "stdio"
    HTTP = "http"


def mcp(
    transport: Annotated[
        Transport, typer.Option(help="stdio: the client starts this command; http: clients connect to it.")
    ] = Transport.STDIO,
    host: Annotated[str, typer.Option(help="With http: the address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="With http: the port; 0 takes a free one.")] = 8002,
    jobs: Annotated[
        bool, typer.Option("--jobs", help="Also tools that start a job without waiting, look at one, and cancel one.")
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show the served pipeline to agents, as a tool of the Model Context Protocol.

    Over http, callers have to present the service's key themselves, if there is one.
    """
    require_mcp()
    api_key = api_key or None  # configuration files are fond of empty variables
    if transport is Transport.STDIO:
        asyncio.run(_on_stdio(url, api_key, jobs=jobs))
        return
    if api_key is None and not is_loopback(host):
        raise ConfigurationError(
            f"whoever reaches {host}:{port} could run the pipeline and read every job: "
            "give the service's key (--api-key or PIPESERVE_API_KEY), which callers then need too, or leave out --host"
        )
    with _listen(host, port) as listener:
        asyncio.run(_over_http(url, api_key, listener, host, jobs=jobs))


async def _on_stdio(url: str, api_key: str | None, *, jobs: bool) -> None:
    from pipeserve.client import AsyncClient
    from pipeserve.mcp import serve_stdio

    async with AsyncClient(url, api_key) as client:
        await _look(client)
        await serve_stdio(client, jobs=jobs)


async def _over_http(url: str, api_key: str | None, listener: socket.socket, host: str, *, jobs: bool) -> None:
    from pipeserve.client import AsyncClient
    from pipeserve.mcp import serve_http

    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/mcp"
    async with AsyncClient(url, api_key) as client:
        await _look(client)
        await serve_http(client, listener, key=api_key, jobs=jobs, ready=lambda: tell(f"MCP at {address}"))


async def _look(client: AsyncClient) -> None:
    """Say at once what is wrong with address or key; the service may come later, so it is no reason to end."""
    try:
        await client.info()
    except PipeserveError as error:
        tell(f"pipeserve: {error}")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigurationError(
            f"can't listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from None
