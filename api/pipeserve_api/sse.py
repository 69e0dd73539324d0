"""A job's log as Server-Sent Events, on raw bytes.

Every event goes out as the log has it: its number becomes the ``id`` and is spliced into the JSON, nothing is encoded
again. The response ends by itself after the terminal event, when the caller leaves, and when this process drains; in
each case the subscription is released before the response returns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipeserve.errors import PipeserveError
from pipeserve.events import event_type_of, is_terminal, number
from pipeserve.runtime.ports import LogEntry, LogGap
from pipeserve.runtime.tasks import end_tasks
from pipeserve_api.attend import caller_left
from pipeserve_api.drain import Drain

PING_SECONDS = 15.0
"""A line goes out at least so often: proxies keep the connection, and a dead one is noticed."""
STALL_SECONDS = 60.0
"""A caller who reads nothing for so long, with its buffers full, is let go; it resumes by id."""
RETRY = b"retry: 2000\n"
"""Opens the first block: a block of its own would be an empty event to lenient parsers."""
BYE = b"retry: 1000\n\n"
"""Sent when the process drains: another replica goes on in a second."""
PING = b": ping\n\n"
HEADERS = {
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",  # nginx passes each event on at once
    "content-type": "text/event-stream; charset=utf-8",
}

Follow = Callable[[], AbstractAsyncContextManager[AsyncIterator[LogEntry | LogGap]]]

_log = logging.getLogger(__name__)


def event_frame(entry: LogEntry) -> bytes:
    """One event of a log."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (
        entry.seq,
        event_type_of(entry.body).encode(),
        number(entry.seq, entry.body),
    )


def snapshot_frame(job: bytes) -> bytes:
    """The job so far. It has no id: whoever resumes does so from an event."""
    return b"event: snapshot\ndata: %b\n\n" % job


def gap_frame(gap: LogGap) -> bytes:
    """Says which events are gone. Its id is the last of them, so that a reconnect does not meet the gap again."""
    data = orjson.dumps({"from": gap.first, "to": gap.last, "reason": gap.reason})
    return b"id: %d\nevent: gap\ndata: %b\n\n" % (gap.last, data)


class EventStream(Response):
    """Sends what ``follow`` yields until the log ends.

    ``opening`` goes out at once. ``types``: send only events of these types. ``on_leave`` is called and awaited when
    the caller leaves before the end.
    """

    def __init__(
        self,
        follow: Follow,
        *,
        drain: Drain,
        opening: bytes = RETRY,
        types: frozenset[str] | None = None,
        on_leave: Callable[[], Awaitable[object]] | None = None,
        headers: Mapping[str, str] | None = None,
        ping_seconds: float = PING_SECONDS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS | dict(headers or {}))
        self._follow = follow
        self._drain = drain
        self._opening = opening
        self._types = types
        self._on_leave = on_leave
        self._ping_seconds = ping_seconds
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        line = _Line(send)
        await line.write(self._opening)
        pumping = asyncio.ensure_future(self._pump(line))
        leaving = asyncio.ensure_future(caller_left(receive))
        draining = asyncio.ensure_future(self._drain.wait())
        pinging = asyncio.ensure_future(line.keep_alive(self._ping_seconds))
        ends: list[asyncio.Future[Any]] = [pumping, leaving, draining]
        try:
            while not any(task.done() for task in ends) and line.stalled_for < self._stall_seconds:
                await asyncio.wait(ends, timeout=self._ping_seconds, return_when=asyncio.FIRST_COMPLETED)
            complete = pumping.done() and pumping.result()
            left = leaving.done()
        finally:
            await end_tasks([*ends, pinging])
        if left and not complete and self._on_leave is not None:
            await self._on_leave()
        if left or line.stalled_for > 0:  # nothing more can be sent; the server closes what was not completed
            return
        if not complete:
            await line.write(BYE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, line: _Line) -> bool:
        """Send all events. Returns whether the last was the terminal one."""
        try:
            async with self._follow() as entries:
                async for entry in entries:
                    if isinstance(entry, LogGap):
                        await line.write(gap_frame(entry))
                        continue
                    terminal = is_terminal(entry.body)
                    if self._types is None or event_type_of(entry.body) in self._types:
                        await line.write(event_frame(entry))
                    elif terminal:
                        # No data: nothing is dispatched, but a reconnect then knows that it has read everything.
                        await line.write(b"id: %d\n\n" % entry.seq)
                    if terminal:
                        return True
        except PipeserveError as error:
            # The answer is under way, so its status can't tell; the caller reconnects and is told then.
            _log.warning("stream ended early", extra={"error": str(error)})
        return False


class _Line:
    """Writes whole frames to one caller, and knows for how long it has been idle or stalled."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._clock = asyncio.get_running_loop().time
        self._quiet_since = self._clock()
        self._writing_since: float | None = None
        self._turn = asyncio.Lock()

    @property
    def stalled_for(self) -> float:
        """Seconds for which the caller has not taken what is being sent; 0 when nothing is."""
        return 0.0 if self._writing_since is None else self._clock() - self._writing_since

    async def write(self, frame: bytes) -> None:
        """Send one frame. Cancelled: the caller got all of it or nothing, and the line stays stalled."""
        async with self._turn:
            self._writing_since = self._clock()
            await self._send({"type": "http.response.body", "body": frame, "more_body": True})
            self._writing_since = None
            self._quiet_since = self._clock()

    async def keep_alive(self, seconds: float) -> None:
        """Send a comment whenever nothing else was sent for ``seconds``."""
        while True:
            idle = self._clock() - self._quiet_since
            if idle < seconds:
                await asyncio.sleep(seconds - idle)
            else:
                await self.write(PING)
