"""How many requests this process has answered, by route, and how long each took."""

from __future__ import annotations

import time
from collections import defaultdict

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeserve.runtime.latency import bucket_of

UNKNOWN = "other"
"""The route of what has none: labels must not grow with what strangers ask for."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestFigures(defaultdict[tuple[str, str, str], dict[int, int]]):
    """Method, route template and class of status → the buckets of :mod:`pipeserve.runtime.latency`."""

    def __init__(self) -> None:
        super().__init__(dict)

    def add(self, method: str, route: str, status: str, seconds: float) -> None:
        """Count one answer."""
        buckets, bucket = self[method, route, status], bucket_of(seconds)
        buckets[bucket] = buckets.get(bucket, 0) + 1


class RequestFiguresMiddleware:
    """Counts every HTTP request, outermost: also those that are refused before they reach a route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # A stream that is handed over has not begun when the application returns; only a 200 is.
        status, started = 200, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except BaseException:
            status = 500
            raise
        finally:
            method = scope["method"] if scope["method"] in _METHODS else UNKNOWN
            figures: RequestFigures = scope["state"]["services"].requests
            figures.add(method, _route(scope), f"{status // 100}xx", time.perf_counter() - started)


def _route(scope: Scope) -> str:
    """The template of the route that was found."""
    route = scope.get("route")
    if isinstance(route, Route):
        return route.path
    return "/invoke" if scope["path"] == "/invoke" else UNKNOWN
