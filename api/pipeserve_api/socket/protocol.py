"""uvicorn's WebSocket connections, able to end while their reader takes nothing.

uvicorn waits for room in the write buffer before it says goodbye, and then for the buffer to empty before it closes:
with a reader that has stopped, for ever. Here the goodbye goes into the buffer at once, and a connection that has not
ended some seconds later is cut. A handshake that can't be read is answered, too.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

PING_SECONDS = 20.0
"""Between two pings: proxies keep the connection."""
PONG_SECONDS = 60.0
"""A client that answers no ping for so long, even at the end of all it was sent, takes nothing."""
GOODBYE_SECONDS = 10.0
"""What a client has to take what it was sent, and to answer the goodbye."""
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_GOING_AWAY = 1001
_TRY_AGAIN_LATER = 1013


class SocketProtocol(WebSocketsSansIOProtocol):
    """One connection."""

    def data_received(self, data: bytes) -> None:
        """asyncio."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated and not self.transport.is_closing():
            # A handshake that the library can't read: uvicorn would neither answer nor close, for ever.
            self.transport.write(b"".join(self.conn.data_to_send()) or _BAD_REQUEST)
            self.transport.close()

    async def send(self, message: Any) -> None:
        """ASGI."""
        closing = message["type"] == "websocket.close"
        if closing:
            self.writable.set()
        if self.handshake_complete and self.close_sent:
            raise ClientDisconnected
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # uvicorn forgets it of a refusal, and logs an error for each
        if closing and self.close_timer is not None:
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(GOODBYE_SECONDS, self.transport.abort)

    def shutdown(self) -> None:
        """The server stops. It says 1012 (restart), which leaves open where to go on; clients know 1001."""
        if self.handshake_complete and not self.close_sent:
            self._end(_GOING_AWAY, "this replica is shutting down: go on at another")
        else:
            super().shutdown()
            self._cut_later()

    def keepalive_timeout(self) -> None:
        """No answer to a ping."""
        self.pong_timer = None
        self.pending_ping_payload = None
        if not (self.close_sent or self.transport.is_closing()):
            self._end(_TRY_AGAIN_LATER, "nothing was read for too long: go on with after")

    def _end(self, code: int, reason: str) -> None:
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()
        self._cut_later()

    def _cut_later(self) -> None:
        self.loop.call_later(GOODBYE_SECONDS, self.transport.abort)
