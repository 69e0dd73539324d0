"""Carries requests out over one pool of connections, blocking or async. What to send again decides ``_repeats``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

import httpx

from pipeserve.client._protocol import Reply, Request, base_headers, unreachable
from pipeserve.client._repeats import Repeats
from pipeserve.client.errors import UnreachableError

CONNECT_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 2.0
"""Idle connections are dropped before uvicorn does it (after 5 s), or a request would meet a closing one."""


class Http:
    """Blocking."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url
        self._client = httpx.Client(base_url=url, headers=base_headers(api_key), limits=_limits())

    def send(self, request: Request) -> Reply:
        """The reply, after as many tries as the request allows. Raises UnreachableError."""
        repeats = Repeats(request)
        while True:
            try:
                with self.stream(request) as response:
                    reply = Reply(response.status_code, response.headers, response.read())
            except UnreachableError as error:
                delay = repeats.failed(error)
            else:
                delay = repeats.answered(reply)
                if delay is None:
                    return reply
            time.sleep(delay)

    @contextmanager
    def stream(self, request: Request) -> Generator[httpx.Response]:
        """The response with its body still to be read; one try. Raises UnreachableError, also while it is read."""
        try:
            with self._client.stream(
                request.method,
                request.path,
                content=request.content,
                headers=request.headers,
                timeout=_timeout(request),
            ) as response:
                yield response
        except httpx.TransportError as error:
            raise unreachable(self._url, error) from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncHttp:
    """On an event loop."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url
        self._client = httpx.AsyncClient(base_url=url, headers=base_headers(api_key), limits=_limits())

    async def send(self, request: Request) -> Reply:
        """The reply, after as many tries as the request allows. Raises UnreachableError."""
        repeats = Repeats(request)
        while True:
            try:
                async with self.stream(request) as response:
                    reply = Reply(response.status_code, response.headers, await response.aread())
            except UnreachableError as error:
                delay = repeats.failed(error)
            else:
                delay = repeats.answered(reply)
                if delay is None:
                    return reply
            await asyncio.sleep(delay)

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncGenerator[httpx.Response]:
        """The response with its body still to be read; one try. Raises UnreachableError, also while it is read."""
        try:
            async with self._client.stream(
                request.method,
                request.path,
                content=request.content,
                headers=request.headers,
                timeout=_timeout(request),
            ) as response:
                yield response
        except httpx.TransportError as error:
            raise unreachable(self._url, error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _limits() -> httpx.Limits:
    return httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS)


def _timeout(request: Request) -> httpx.Timeout:
    return httpx.Timeout(CONNECT_SECONDS, read=request.read_timeout, pool=None)
