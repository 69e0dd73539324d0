"""Serves a pipeline over real HTTP for one test: uvicorn on a port of its own, with the store in memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from pipeserve.runtime.memory import MemoryStore
from pipeserve.runtime.tracing import Tracing
from pipeserve.sdk.pipeline import Pipeline
from pipeserve.sdk.snapshot import snapshot
from pipeserve.settings import (
    ArtifactSettings,
    DeploymentSettings,
    LogSettings,
    RuntimeSettings,
    ServiceSettings,
    StoreSettings,
    WebhookSettings,
)
from pipeserve_api.app import create_app
from pipeserve_api.drain import Drain
from pipeserve_api.server import Server, server_config
from pipeserve_api.services import Backend, Services, services_over
from pipeserve_api.settings import ApiSettings

ARTIFACTS = "memory://pipeserve-tests"


@dataclass(frozen=True)
class Served:
    """A running service."""

    url: str
    http: httpx.AsyncClient
    services: Services
    store: Any
    drain: Drain

    async def invoke(self, parameters: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
        """``POST /invoke``; ``mode`` and ``headers`` go where they belong, the rest into the body."""
        query = {"mode": options.pop("mode")} if "mode" in options else {}
        headers = options.pop("headers", {})
        body = {"parameters": parameters or {}, **options}
        return await self.http.post("/invoke", json=body, params=query, headers=headers)

    async def submit(self, parameters: dict[str, Any] | None = None, **options: Any) -> str:
        """The id of a new queued job."""
        answer = await self.invoke(parameters, mode="async", **options)
        assert answer.status_code == 202, answer.text
        return answer.json()["job_id"]


def api_settings(
    service: dict[str, Any] | None = None,
    runtime: dict[str, Any] | None = None,
    artifacts: str = ARTIFACTS,
    webhooks: dict[str, Any] | None = None,
) -> ApiSettings:
    return ApiSettings(
        service=ServiceSettings.from_environment(**{"port": 0, **(service or {})}),
        runtime=RuntimeSettings.from_environment(**(runtime or {})),
        store=StoreSettings.from_environment(),
        deployment=DeploymentSettings.from_environment(),
        log=LogSettings.from_environment(),
        artifacts=ArtifactSettings.from_environment(url=artifacts),
        webhooks=WebhookSettings.from_environment(**(webhooks or {})),
        drain_seconds=5,
    )


@asynccontextmanager
async def serving(
    pipeline: Pipeline[..., Any],
    *,
    backend: Backend | None = None,
    service: dict[str, Any] | None = None,
    runtime: dict[str, Any] | None = None,
    artifacts: str = ARTIFACTS,
    webhooks: dict[str, Any] | None = None,
    tracing: Tracing | None = None,
) -> AsyncIterator[Served]:
    """Serve ``pipeline`` until the block ends. ``service``, ``runtime``, ``webhooks``: settings by field name."""
    settings = api_settings(service, runtime, artifacts, webhooks)
    deployment = snapshot(pipeline, "tests:pipeline")
    store: Any = MemoryStore() if backend is None else backend
    drain = Drain()
    async with AsyncExitStack() as stack:
        services = await stack.enter_async_context(
            services_over(pipeline, deployment, store, settings, drain, tracing=tracing)
        )

        @asynccontextmanager
        async def opened(_drain: Drain) -> AsyncIterator[Services]:
            yield services

        app = create_app(opened, settings.service, drain, tracing=tracing)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        # Accepted connections have it from here. asyncio's own loop, unlike uvloop, sets it for its own sockets only,
        # and each answer on a kept connection would wait 40 ms for the caller's delayed ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = server_config(app, settings.service)
        config.load()
        server = Server(
            config,
            drain,
            busy=lambda: services.runtime.active,
            grace=settings.drain_seconds,
            interrupt=services.inline.interrupt,
        )
        server.server_state.default_headers = config.encoded_headers  # the main loop's work, too
        server.lifespan = config.lifespan_class(config)
        # Without serve()'s main loop, whose ticks would add 0.2 s to every test.
        await server.startup(sockets=[listener])
        stack.push_async_callback(_stop, server, drain)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        # No TLS here, and making a context for it takes 50 ms, in each test.
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=10, verify=False))
        yield Served(url, http, services, store, drain)


async def _stop(server: Server, drain: Drain) -> None:
    """What ``server.shutdown`` does, without uvicorn's pause of 0.1 s; tests of processes go through the real one."""
    drain.begin()
    for listening in server.servers:
        listening.close()
    for connection in list(server.server_state.connections):
        connection.shutdown()
    await wait_until(lambda: not (server.server_state.connections or server.server_state.tasks), "all callers left")
    await server.lifespan.shutdown()


async def wait_until(predicate: Callable[[], Any], description: str, *, seconds: float = 5.0) -> None:
    """Return when ``predicate`` holds (it may be async); fail with ``description`` otherwise."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                value = predicate()
                if asyncio.iscoroutine(value):
                    value = await value
                if value:
                    return
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"waited {seconds} s in vain until {description}") from None


def bearer(key: str) -> dict[str, str]:
    """The header of a request with this key, or token."""
    return {"Authorization": f"Bearer {key}"}


def frames(text: str) -> list[dict[str, str]]:
    """The blocks of an event stream, each as its fields; a comment is under ``:``."""
    blocks: list[dict[str, str]] = []
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        for line in block.splitlines():
            name, _, value = line.partition(":")
            fields[name or ":"] = value.removeprefix(" ")
        if fields:
            blocks.append(fields)
    return blocks
