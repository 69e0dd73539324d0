"""uvicorn, ending in the right order: no new connections, then streams, then running calls, then the rest.

uvicorn alone waits for open responses before anything of the application is told, so a stream would hold it up for
ever. Its command line can't be taught otherwise; its ``Server`` can.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import uvicorn
from fastapi import FastAPI

from pipeserve.runtime.tasks import end_tasks
from pipeserve.settings import ServiceSettings
from pipeserve_api.drain import Drain
from pipeserve_api.hand_over import HandOver
from pipeserve_api.http_protocol import HttpProtocol
from pipeserve_api.socket.protocol import PING_SECONDS, PONG_SECONDS, SocketProtocol

CONNECTION_GRACE = 1
"""Seconds that connections have to close once nothing runs any more. What still runs is cancelled then."""
STALL_GRACE = 0.5
"""Seconds of these that a reader has to take what it was sent. A connection whose buffer is not empty then is cut."""
INTERRUPT_GRACE = 0.5
"""Seconds that interrupted calls have to end before connections close. Their answers may still come in that time."""
CTRL_C_GRACE = 2.0
"""The longest that running calls have after Ctrl-C: somebody waits at a terminal."""
_SECURITY_HEADERS = [
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "SAMEORIGIN"),
    ("referrer-policy", "no-referrer"),
]
"""What every answer carries; a URL can have a token, which no other host is to learn."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def allow_many_connections() -> None:
    """As many open files as the system lets this process have: each connection is one, and 1,024 is a usual limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS calls its limit infinite, and then refuses that
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def server_config(app: FastAPI, settings: ServiceSettings) -> uvicorn.Config:
    """How the service listens."""
    return uvicorn.Config(
        HandOver(app),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=HttpProtocol,
        headers=_SECURITY_HEADERS,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=CONNECTION_GRACE,
        ws=SocketProtocol,
        ws_max_size=settings.max_body,
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PONG_SECONDS,
        ws_per_message_deflate=False,  # it would cost each event more time on the loop than all the rest
    )


class Server(uvicorn.Server):
    """A server that drains.

    ``busy``: how many calls run; they have ``grace`` seconds (after Ctrl-C: two at most). ``interrupt`` then ends
    those that are left, within about the seconds that it is given: their callers are answered that this process drains.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        drain: Drain,
        *,
        busy: Callable[[], int],
        grace: float,
        interrupt: Callable[[float], Awaitable[object]],
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._busy = busy
        self._grace = grace
        self._interrupt = interrupt

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in order."""
        for server in self.servers:
            server.close()
        self._drain.begin()
        # Proxies keep connections to send the next call on, which would be refused here: idle ones end now, the others
        # with the answer that they wait for.
        for connection in list(self.server_state.connections):
            if isinstance(connection, HttpProtocol):
                connection.shutdown()
        deadline = time.monotonic() + self._grace
        # The runtime has a count of its runs, and no event for its return to zero.
        while self._busy() and time.monotonic() < deadline and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await self._interrupt(INTERRUPT_GRACE)
        cutting = asyncio.create_task(self._cut_stalled(), name="cut-stalled")
        try:
            await super().shutdown(sockets)
        finally:
            await end_tasks([cutting])

    async def _cut_stalled(self) -> None:
        """End what a close does not: it waits for a reader who has stopped to take everything."""
        await asyncio.sleep(STALL_GRACE)
        for connection in list(self.server_state.connections):
            if connection.transport.get_write_buffer_size() > 0:
                connection.transport.abort()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal asks to stop."""
        if sig == signal.SIGINT:
            self._grace = min(self._grace, CTRL_C_GRACE)
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Like uvicorn's, but a signal that was served is not raised again: a clean end is exit code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
