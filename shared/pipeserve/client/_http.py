"""Carries requests out over one pool of connections, blocking or async. What to send again decides ``_repeats``."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import httpx

from pipeserve.client._protocol import Reply, Request, base_headers, unreachable
from pipeserve.client._repeats import Repeats
from pipeserve.client.errors import UnreachableError

CONNECT_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 2.0
"""Idle connections are dropped before uvicorn does it (after 5 s), or a request would meet a closing one."""


@dataclass(frozen=True, slots=True)
class Wire:
    """How the service is reached, in httpx's terms."""

    proxy: str | httpx.Proxy | None = None
    verify: bool | ssl.SSLContext = True
    headers: Mapping[str, str] | None = None
    connect_timeout: float = CONNECT_SECONDS

    def all_headers(self, api_key: str | None) -> dict[str, str]:
        """What every request carries."""
        return {**(self.headers or {}), **base_headers(api_key)}

    def timeout(self, request: Request) -> httpx.Timeout:
        """``request``'s."""
        return httpx.Timeout(self.connect_timeout, read=request.read_timeout, pool=None)


class Http:
    """Blocking."""

    def __init__(self, url: str, api_key: str | None, wire: Wire, transport: httpx.BaseTransport | None) -> None:
        self._url = url
        self._wire = wire
        self._client = httpx.Client(
            base_url=url,
            headers=wire.all_headers(api_key),
            limits=_limits(),
            proxy=wire.proxy,
            verify=wire.verify,
            transport=transport,
        )

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
                timeout=self._wire.timeout(request),
            ) as response:
                yield response
        except httpx.TransportError as error:
            raise unreachable(self._url, error) from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncHttp:
    """On an event loop."""

    def __init__(self, url: str, api_key: str | None, wire: Wire, transport: httpx.AsyncBaseTransport | None) -> None:
        self._url = url
        self._wire = wire
        self._client = httpx.AsyncClient(
            base_url=url,
            headers=wire.all_headers(api_key),
            limits=_limits(),
            proxy=wire.proxy,
            verify=wire.verify,
            transport=transport,
        )

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
                timeout=self._wire.timeout(request),
            ) as response:
                yield response
        except httpx.TransportError as error:
            raise unreachable(self._url, error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _limits() -> httpx.Limits:
    return httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS)
