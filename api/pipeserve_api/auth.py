"""Lets only callers with the service's key in, once there is one. Pure ASGI: nothing around a stream buffers it."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from pipeserve.errors import UnauthorizedError
from pipeserve_api.problems import error_response


class KeyMiddleware:
    """Refuses requests and WebSocket handshakes without ``key``. Only ``/health*`` stays open, for probes."""

    def __init__(self, app: ASGIApp, *, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan" or _is_open(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
            await receive()  # the handshake; only then may it be refused
            await send({"type": "websocket.close", "code": 1008})
            return
        response = error_response(
            UnauthorizedError(), instance=scope["path"], headers={"www-authenticate": 'Bearer realm="pipeserve"'}
        )
        await response(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"x-api-key":
                given = value.strip()
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                given = value[7:].strip()
            else:
                continue
            if hmac.compare_digest(given, self._key):
                return True
        return False


def _is_open(scope: Scope) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return scope["type"] == "http" and (path == "/health" or path.startswith("/health/"))
