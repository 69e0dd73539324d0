"""``/stream``, the WebSocket: see :mod:`pipeserve_api.socket`."""

from __future__ import annotations

from functools import partial

from starlette.types import Receive, Scope, Send

from pipeserve_api.auth import renewed
from pipeserve_api.services import Services
from pipeserve_api.socket.session import STALL_SECONDS, Session

PATH = "/stream"
SUBPROTOCOL = "pipeserve.v1"


class SocketEndpoint:
    """The ASGI endpoint. ``stall_seconds``: how long a client may take nothing."""

    def __init__(self, *, stall_seconds: float = STALL_SECONDS) -> None:
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket."""
        services: Services = scope["state"]["services"]
        if (await receive())["type"] != "websocket.connect":
            return
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
        session = Session(
            services,
            receive,
            send,
            instance=PATH,
            ask_caller=partial(renewed, scope),
            stall_seconds=self._stall_seconds,
        )
        await session.run()
