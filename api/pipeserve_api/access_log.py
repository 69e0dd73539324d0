"""A line for each request, and an id by which its caller and its lines are found again.

The path without its query, which may have a token; no header but the id; of the body nothing.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeserve.runtime.line_fields import request_id
from pipeserve_api.callers import caller_in
from pipeserve_api.hand_over import handed_over

_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
"""What is taken for an id: whatever else a stranger sends is not repeated in a header or a log."""
_SWITCHED = 101
_REFUSED = 403

_log = logging.getLogger("pipeserve_api.access")


class AccessLogMiddleware:
    """Sees ``X-Request-ID`` in and out, and writes the lines. A stream's line says when it began, a socket's how long
    it was open."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        own_id = _read_id(scope["headers"]) or uuid.uuid4().hex
        request_id.set(own_id)  # for good: the task is this request's, and a stream goes on in it
        header = (b"x-request-id", own_id.encode())
        status, started = 0, time.perf_counter()

        def noted(message: Message) -> Awaitable[None]:
            nonlocal status
            kind = message["type"]
            if kind in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
                status = message.get("status", _SWITCHED)
                message = {**message, "headers": [*message.get("headers", ()), header]}
            elif kind == "websocket.close" and not status:
                status = _REFUSED
            return send(message)

        try:
            await self._app(scope, receive, noted)
        except BaseException:
            status = status or 500
            raise
        finally:
            if not status and handed_over(scope):
                status = 200  # a stream has not begun yet; only a 200 is handed over
            said = {
                "method": scope.get("method", "WEBSOCKET"),
                "path": _path(scope),
                "status": status or "none",
                "seconds": round(time.perf_counter() - started, 6),
                "caller": caller_in(scope).name or "-",
                "request_id": own_id,
            }
            _log.info("request", extra=said)


def _read_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    given = [value for name, value in headers if name == b"x-request-id"]
    return given[0].decode() if len(given) == 1 and _ID.fullmatch(given[0]) else None


def _path(scope: Scope) -> str:
    """As it was sent, so with its unprintable characters escaped."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.partition(b"?")[0].decode("ascii", "backslashreplace")
