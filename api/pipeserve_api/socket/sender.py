"""Sends frames over one socket, one at a time, and knows for how long its reader has taken nothing."""

from __future__ import annotations

import asyncio

from starlette.types import Send


class SocketGone(Exception):
    """Nothing can be sent any more; the receiver is told so too."""


class Sender:
    """Frames go out whole and in the order in which they were given."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._clock = asyncio.get_running_loop().time
        self._turn = asyncio.Lock()
        self._sending_since: float | None = None

    @property
    def stalled_for(self) -> float:
        """Seconds for which the reader has not taken what is being sent; 0 when nothing is."""
        return 0.0 if self._sending_since is None else self._clock() - self._sending_since

    async def send(self, *frames: bytes) -> None:
        """Send frames, nothing in between. Cancelled: the one that waits was not sent. Raises SocketGone."""
        async with self._turn:
            self._sending_since = self._clock()
            try:
                for frame in frames:
                    await self._send({"type": "websocket.send", "text": frame.decode()})
                    self._sending_since = self._clock()
            except OSError as error:
                raise SocketGone from error
            finally:
                self._sending_since = None
