"""Lets only callers with a key of the service in, once there is one. Pure ASGI: nothing around a stream buffers it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from pipeserve.errors import ConfigurationError, UnauthorizedError
from pipeserve_api.problems import error_response

CALLER = "caller"
"""The name in the request's state under which the middleware notes whose key was presented."""
_DIGEST_LENGTH = 16


def keys_of(setting: str) -> list[str]:
    """The keys in ``ZENML_SERVING_AUTH_KEY``, which has commas between them. Raises ConfigurationError for none."""
    keys = [key.strip() for key in setting.split(",") if key.strip()]
    if not keys:
        raise ConfigurationError("wrong setting: ZENML_SERVING_AUTH_KEY: it names no key; unset it to need none")
    return keys


def caller_of(scope: Scope) -> str:
    """Who sent the request: a digest of the key that was presented; empty while none is needed."""
    return scope["state"].get(CALLER, "")


class KeyMiddleware:
    """Refuses requests and WebSocket handshakes without one of ``keys``. Only ``/health*`` stays open, for probes."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[str]) -> None:
        self._app = app
        self._callers = {key.encode(): hashlib.sha256(key.encode()).hexdigest()[:_DIGEST_LENGTH] for key in keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        caller = self._caller(scope)
        if caller is not None:
            scope.setdefault("state", {})[CALLER] = caller
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

    def _caller(self, scope: Scope) -> str | None:
        for name, value in scope["headers"]:
            if name == b"x-api-key":
                given = value.strip()
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                given = value[7:].strip()
            else:
                continue
            found: str | None = None
            for key, caller in self._callers.items():  # all of them: the time taken tells nothing
                if hmac.compare_digest(given, key):
                    found = caller
            if found is not None:
                return found
        return None


def _is_open(scope: Scope) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return scope["type"] == "http" and (path == "/health" or path.startswith("/health/"))
