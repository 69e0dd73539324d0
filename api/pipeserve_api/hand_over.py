"""Lets a long response run without all that has led to it.

What a framework holds for a request (its scopes, stacks of contexts, a coroutine for each layer) takes 15 KiB, for as
long as the response lasts, and a stream lasts. So a response may ask to be called from the outermost layer, once
everything below has returned.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Receive, Scope, Send

_KEY = "pipeserve.hand_over"

Rest = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An ASGI application: what is left to be done for a request."""


def hand_over(scope: Scope, rest: Rest) -> bool:
    """Have ``rest`` called once this request's layers have returned; it answers then. False: nobody would."""
    holder: list[Rest] | None = scope.get(_KEY)
    if holder is None:
        return False
    holder.append(rest)
    return True


class HandOver:
    """Stands around the application, outside of its own middleware too. A response works as well without it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        holder: list[Rest] = []
        await self._app({**scope, _KEY: holder}, receive, send)
        if holder:
            await holder.pop()(scope, receive, send)
