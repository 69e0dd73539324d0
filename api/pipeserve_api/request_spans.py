"""A span for each HTTP request, as OpenTelemetry's conventions for servers name what it says.

Never the query: a token may be in it. A request for ``/health`` or ``/metrics`` has none: nobody looks at these one by
one, and probes would be most of all traces.
"""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeserve.runtime.tracing import Attribute, Tracing
from pipeserve_api.hand_over import handed_over
from pipeserve_api.paths import path_parts
from pipeserve_api.request_figures import METHODS, UNKNOWN, route_of

_UNTRACED = frozenset({"health", "metrics"})


class RequestSpansMiddleware:
    """Outermost. The span of a stream ends when the stream begins: spans are told of at their end."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and path_parts(scope)[0] not in _UNTRACED:
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            # No span: it may be open for days. What its client starts belongs to what the handshake came from.
            joined = self._tracing.join(scope["headers"])
            try:
                await self._app(scope, receive, send)
            finally:
                joined.leave()
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        name = "HTTP" if method == "_OTHER" else method
        attributes: dict[str, Attribute] = {
            "http.request.method": method,
            "url.scheme": scope["scheme"],
            "url.path": scope["path"],
            "network.protocol.version": scope["http_version"],
        }
        span = self._tracing.start_request(name, scope["headers"], attributes)
        status, error = 0, None

        def noted(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        try:
            await self._app(scope, receive, noted)
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            ended: dict[str, Attribute] = {}
            if not status and handed_over(scope):
                status = 200  # only a 200 is handed over
            if status:
                ended["http.response.status_code"] = status
            if (route := route_of(scope)) != UNKNOWN:
                ended["http.route"] = route
                span.rename(f"{name} {route}")
            if status >= 500:
                error = error or str(status)
            span.end(ended, error=error)
