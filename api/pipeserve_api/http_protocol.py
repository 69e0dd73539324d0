"""uvicorn's HTTP connections, with an end for those that send too slowly.

uvicorn waits for ever for a request that has begun, so whoever sends a byte now and then could hold as many connections
as a process may open. Here a request's head has to come within some seconds, and its body at a least rate.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
"""What a client has from connecting, or from a request's first byte, to the end of its head."""
BODY_GRACE = 30.0
"""Seconds after which a body has to have come at the least rate."""
LEAST_RATE = 1024.0
"""Bytes a second."""
_LOOK_EVERY = 2.0


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    head_seconds = HEAD_SECONDS
    body_grace = BODY_GRACE
    look_every = _LOOK_EVERY

    def connection_made(self, transport: asyncio.Transport) -> None:
        """asyncio."""
        super().connection_made(transport)
        self._begun: float | None = self.loop.time()
        self._in_body = False
        self._body_bytes = 0
        self._watch: asyncio.TimerHandle | None = self.loop.call_later(self.look_every, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio."""
        self._begun = None
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """httptools."""
        self._begun, self._in_body, self._body_bytes = self.loop.time(), False, 0
        if self._watch is None:  # it stays for a while: most requests need none of their own
            self._watch = self.loop.call_later(self.look_every, self._look)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """httptools."""
        self._in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """httptools."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """httptools."""
        self._begun = None
        super().on_message_complete()

    def _look(self) -> None:
        self._watch = None
        if self._begun is None or self.transport.is_closing() or self._upgraded():
            return
        if self._too_slow(self.loop.time() - self._begun):
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(self.look_every, self._look)

    def _too_slow(self, seconds: float) -> bool:
        if not self._in_body:
            return seconds > self.head_seconds
        if self.flow.read_paused:  # it is the application that takes nothing
            return False
        return seconds > self.body_grace and self._body_bytes < (seconds - self.body_grace) * LEAST_RATE

    def _upgraded(self) -> bool:
        """Whether the connection is a WebSocket's by now."""
        transport: Any = self.transport
        return transport.get_protocol() is not self
