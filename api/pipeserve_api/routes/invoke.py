"""``POST /invoke``: the one route that must be fast, so a plain ASGI endpoint instead of a FastAPI route."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from pipeserve.errors import DrainingError, ProblemError
from pipeserve_api import idempotency
from pipeserve_api.body import read_body
from pipeserve_api.call import Call
from pipeserve_api.callers import caller_in
from pipeserve_api.preferences import CallPreferences
from pipeserve_api.problems import error_response
from pipeserve_api.services import Services

PATH = "/invoke"


class InvokeEndpoint:
    """The ASGI endpoint."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        services: Services = scope["state"]["services"]
        headers = {"vary": "Prefer"}
        try:
            preferences = CallPreferences.read(scope)
            headers = preferences.headers
            body = await read_body(
                receive, limit=services.settings.service.max_body, announced=preferences.content_length
            )
            if body is None:
                return
            if services.drain.begun:
                raise DrainingError()
            invocation, caller, key = services.invocations.read(body), caller_in(scope), preferences.idempotency_key
            same = None if key is None else idempotency.of_key(key, caller.name, invocation.sent, preferences.cache)
            call = Call(services, invocation, preferences, receive, PATH, caller, same)
            response = await call.answer()
        except ProblemError as error:
            response = error_response(error, instance=PATH, headers=headers)
        if response is not None:
            await response(scope, receive, send)


class InvokeFirst:
    """Takes ``POST /invoke`` out before FastAPI's routing, which costs about a tenth of a short call.

    The route stays in the router too: it answers other methods, and stands in the list of routes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._endpoint = InvokeEndpoint()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST":
            await self._endpoint(scope, receive, send)
        else:
            await self._app(scope, receive, send)
