"""A job's log as Server-Sent Events, on raw bytes.

Every event goes out as the log has it: its number becomes the ``id`` and is spliced into the JSON, nothing is encoded
again. The response ends by itself after the terminal event, when the caller leaves, and when this process drains; in
each case the subscription is released before the response returns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Self, cast

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipeserve.runtime.follower import Follower
from pipeserve.runtime.ports import LogEntry, LogGap
from pipeserve_api.drain import Drain
from pipeserve_api.hand_over import cut, hand_over
from pipeserve_api.pump import End, Frames, Pump

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

Follow = Callable[[], AbstractAsyncContextManager[Follower]]


def snapshot_frame(job: bytes) -> bytes:
    """The job so far. It has no id: whoever resumes does so from an event."""
    return b"event: snapshot\ndata: %b\n\n" % job


def gap_frame(gap: LogGap, *, position: str | None = None, job_id: str | None = None) -> bytes:
    """Says which events are gone. Its id is the last of them, so that a reconnect does not meet the gap again.

    ``position``, ``job_id``: in a stream of several jobs.
    """
    said: dict[str, Any] = {} if job_id is None else {"job_id": job_id}
    data = orjson.dumps(said | {"from": gap.first, "to": gap.last, "reason": gap.reason})
    event_id = b"%d" % gap.last if position is None else position.encode()
    return b"id: %b\nevent: gap\ndata: %b\n\n" % (event_id, data)


def position_frame(position: str) -> bytes:
    """No data: nothing is dispatched, but a reconnect then knows what it has read, or had no wish to."""
    return b"id: %b\n\n" % position.encode()


class JobFrames(Frames):
    """One job's log. ``types``: only events of these types."""

    __slots__ = ("_entered", "_follower", "_types")

    def __init__(self, follow: Follow, types: frozenset[str] | None = None) -> None:
        super().__init__()
        self._entered = follow()
        self._follower: Follower | None = None
        self._types = types

    async def __aenter__(self) -> Self:
        self._follower = await self._entered.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._entered.__aexit__(*exc)

    async def next(self) -> Sequence[bytes]:
        follower = self._follower
        assert follower is not None, "enter it first"
        while entries := await follower.batch():
            last = entries[-1]
            if isinstance(last, LogEntry) and last.terminal:
                self.complete = True
            frames = [
                entry.frame if isinstance(entry, LogEntry) else gap_frame(entry) for entry in self._wanted(entries)
            ]
            if self.complete and not (frames and frames[-1] is cast(LogEntry, last).frame):
                frames.append(position_frame(str(cast(LogEntry, last).seq)))
            if frames:
                return frames
        return ()

    def _wanted(self, entries: Sequence[LogEntry | LogGap]) -> Sequence[LogEntry | LogGap]:
        types = self._types
        if types is None:
            return entries
        return [entry for entry in entries if isinstance(entry, LogGap) or entry.event_type in types]


class EventStream(Response):
    """Sends ``frames`` until they are complete.

    ``opening`` goes out at once. ``on_leave`` is called and awaited when the caller leaves before the end.
    """

    raw_headers: list[tuple[bytes, bytes]]

    def __init__(
        self,
        frames: Frames,
        *,
        drain: Drain,
        opening: bytes = RETRY,
        on_leave: Callable[[], Awaitable[object]] | None = None,
        headers: Mapping[str, str] | None = None,
        ping_seconds: float = PING_SECONDS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS | dict(headers or {}))
        self._frames = frames
        self._drain = drain
        self._opening = opening
        self._on_leave = on_leave
        self._ping_seconds = ping_seconds
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if not hand_over(scope, self._stream):
            await self._stream(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        pump = Pump(send, self._drain, ping=PING, ping_seconds=self._ping_seconds, stall_seconds=self._stall_seconds)
        await pump.write(self._opening)
        self._opening, self.raw_headers = b"", []  # the stream may be long, and there are many
        end = await pump.run(self._frames, receive)
        if end is End.LEFT and self._on_leave is not None:
            await self._on_leave()
        if end is End.STALLED and cut(send):
            while (await receive())["type"] != "http.disconnect":  # else the server finds an answer not completed
                pass
        if end in (End.LEFT, End.STALLED):
            return  # nothing more can be sent; the server closes what was not completed
        # A process that drains cuts a line that stays stalled, and sending then returns.
        if end is not End.COMPLETE:
            await pump.write(BYE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
