"""Lets a long response run without all that has led to it.

What a framework holds for a request (its scopes, stacks of contexts, a coroutine for each layer) takes 15 KiB, for as
long as the response lasts, and a stream lasts. So a response may ask to be called from the outermost layer, once
everything below has returned.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from pipeserve_api.request_figures import RequestFigures

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


def cut(send: Send) -> bool:
    """Drop the connection, whatever its reader has not taken. False: only the server could, and has to be left to it.

    ASGI has no word for this, and uvicorn closes politely: a reader who has stopped would keep the connection for ever.
    But ``send`` is a method of what uvicorn made for the request, where nobody stands in between.
    """
    transport: object = getattr(getattr(send, "__self__", None), "transport", None)
    abort = getattr(transport, "abort", None)
    if abort is None:
        return False
    abort()
    return True


def handed_over(scope: Scope) -> bool:
    """Whether something is left to be done for this request."""
    return bool(scope.get(_KEY))


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
            figures: RequestFigures = scope["state"]["services"].requests
            figures.streams += 1
            try:
                await holder.pop()(scope, receive, send)
            finally:
                figures.streams -= 1
