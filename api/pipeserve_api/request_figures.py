"""How many requests this process has answered, by route, how long each took, and what is still open."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeserve.errors import InvocationError, ProblemError
from pipeserve.runtime.latency import bucket_of
from pipeserve_api.hand_over import handed_over

UNKNOWN = "other"
"""The route of what has none: labels must not grow with what strangers ask for."""
UNANSWERED = "none"
"""The status of a request whose caller left before there was an answer."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Those that are told by name."""
_CODES = frozenset(kind.code for kind in ProblemError.__subclasses__()) | {"internal_error"}
_CODE = re.compile(rb'"code":"([a-z_]+)"')
"""The first in a problem is its own: what comes before are texts, and a quote in a text is escaped."""
_PROBLEM = (b"content-type", b"application/problem+json")


class RequestFigures:
    """Counts, on the event loop."""

    def __init__(self) -> None:
        self.answers: defaultdict[tuple[str, str, str], dict[int, int]] = defaultdict(dict)
        """Method, route template and class of status → the buckets of :mod:`pipeserve.runtime.latency`."""
        self.problems: Counter[str] = Counter()
        """Answers that were problems, by code. A pipeline's own codes count as ``invocation_error``."""
        self.streams = 0
        """Event streams that are open."""
        self.sockets = 0
        """WebSockets that are open."""

    def add(self, method: str, route: str, status: str, seconds: float) -> None:
        """Count one answer."""
        buckets, bucket = self.answers[method, route, status], bucket_of(seconds)
        buckets[bucket] = buckets.get(bucket, 0) + 1

    def add_problem(self, body: bytes) -> None:
        """Count one problem document."""
        found = _CODE.search(body)
        code = InvocationError.code if found is None else found[1].decode()
        self.problems[code if code in _CODES else InvocationError.code] += 1


class RequestFiguresMiddleware:
    """Counts every HTTP request, outermost: also those that are refused before they reach a route.

    It costs about a fiftieth of the shortest call.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            figures: RequestFigures = scope["state"]["services"].requests
            figures.sockets += 1
            try:
                await self._app(scope, receive, send)
            finally:
                figures.sockets -= 1
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        figures: RequestFigures = scope["state"]["services"].requests
        status, started = 0, time.perf_counter()
        problem = False

        def noted(message: Message) -> Awaitable[None]:  # no coroutine: that would cost as much as all the rest
            nonlocal status, problem
            if message["type"] == "http.response.start":
                status = message["status"]
                problem = status >= 400 and _PROBLEM in message["headers"]
            elif problem:
                problem = False
                figures.add_problem(message["body"])
            return send(message)

        try:
            await self._app(scope, receive, noted)
        except BaseException:
            status = 500
            raise
        finally:
            if not status and handed_over(scope):
                status = 200  # a stream has not begun yet; only a 200 is handed over
            told = f"{status // 100}xx" if status else UNANSWERED
            method = scope["method"] if scope["method"] in METHODS else UNKNOWN
            figures.add(method, route_of(scope), told, time.perf_counter() - started)


def route_of(scope: Scope) -> str:
    """The template of the route that was found, once the request has been answered; :data:`UNKNOWN`: none was."""
    route = scope.get("route")
    if isinstance(route, Route):
        return route.path
    return "/invoke" if scope["path"] == "/invoke" else UNKNOWN
