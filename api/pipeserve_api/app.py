"""Makes the ASGI application. It opens nothing by itself: its services come from an opener, in the lifespan."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, WebSocketRoute

from pipeserve.runtime.tracing import Tracing
from pipeserve.settings import ServiceSettings
from pipeserve.telemetry import existing_tracing
from pipeserve_api import openapi, problems
from pipeserve_api.access_log import AccessLogMiddleware
from pipeserve_api.auth import KeyMiddleware
from pipeserve_api.drain import Drain
from pipeserve_api.key_ring import KeyRing
from pipeserve_api.limits import LimitsMiddleware
from pipeserve_api.origins import OriginMiddleware, read_origins
from pipeserve_api.request_figures import RequestFiguresMiddleware
from pipeserve_api.request_spans import RequestSpansMiddleware
from pipeserve_api.routes import (
    artifacts,
    documents,
    events,
    explain,
    invoke,
    jobs,
    logs,
    operations,
    socket,
    streams,
    submissions,
    tokens,
    visualizations,
)
from pipeserve_api.services import ServicesOpener

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig  # older versions have none, and take the argument all the same

_REQUEST_HEADERS = (
    *("Authorization", "X-API-Key", "Content-Type", "Idempotency-Key", "Prefer", "Cache-Control", "Last-Event-ID"),
    *("Traceparent", "Tracestate", "X-Request-ID"),
)
_ANSWER_HEADERS = (
    *("Location", "Retry-After", "Idempotency-Replayed", "Preference-Applied", "Cache-Status", "Content-Disposition"),
    *("RateLimit", "RateLimit-Policy", "X-Request-ID"),
)
"""What pages of other origins may send, and read."""
_NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
"""FastAPI would tell of each request once more, as soon as the process has a tracer provider; with errors' messages."""


def create_app(
    opener: ServicesOpener, settings: ServiceSettings, drain: Drain | None = None, *, tracing: Tracing | None = None
) -> FastAPI:
    """The application of one deployment.

    ``opener`` opens its services when the server starts it. Whoever stops the server begins ``drain`` first, so that
    open streams end (:class:`pipeserve_api.server.Server` does). ``tracing`` is told of requests; None: whoever has set
    up OpenTelemetry in this process is, if anybody has.
    """
    drain = Drain() if drain is None else drain

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        async with opener(drain) as services:
            openapi.describe(app, services.deployment, services.definition, needs_key=settings.needs_key)
            yield {"services": services}
            drain.begin()  # under a server that does not

    # No redirects for a slash too many: they would repeat the query, and a token in it, in a header.
    app = FastAPI(
        title="pipeserve",
        version=operations.package_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    app.router.routes.append(Route(invoke.PATH, invoke.InvokeEndpoint(), methods=["POST"], include_in_schema=False))
    app.router.routes.append(WebSocketRoute(socket.PATH, socket.SocketEndpoint()))
    app.add_middleware(invoke.InvokeFirst)
    for module in (
        jobs,
        submissions,
        logs,
        visualizations,
        artifacts,
        explain,
        streams,
        events,
        tokens,
        documents,
        operations,
    ):
        app.include_router(module.router)
    problems.install(app)
    if settings.limits_callers:
        app.add_middleware(LimitsMiddleware)
    ring = KeyRing.of(settings)
    if ring is not None:
        app.add_middleware(KeyMiddleware, ring=ring)
    origins = read_origins(settings.allowed_origins)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT"],
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_ANSWER_HEADERS,
        )
    app.add_middleware(OriginMiddleware, allowed=origins, check_host=settings.open_to_its_machine)
    app.add_middleware(RequestFiguresMiddleware)
    if settings.access_log:
        app.add_middleware(AccessLogMiddleware)
    tracing = tracing or existing_tracing()
    if tracing is not None:
        app.add_middleware(RequestSpansMiddleware, tracing=tracing)
    return app
