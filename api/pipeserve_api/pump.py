"""Writes to one caller what there is, as it comes, until something ends it.

A process has thousands of these, so each has little: a task that writes, the request's own, which hears of the caller's
leaving, and a timer. What else may end it (the shutdown, a caller who has stopped reading) calls it back.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto
from typing import Any, Self, cast

from starlette.types import Receive, Send

from pipeserve.errors import PipeserveError
from pipeserve.runtime.tasks import end_tasks
from pipeserve_api.drain import Drain

CHUNK = 65_536
"""Bytes that are written at once, about: as many as a connection takes before it asks its writer to wait."""

_log = logging.getLogger(__name__)


class End(Enum):
    """Why a pump has ended."""

    COMPLETE = auto()
    CLOSED = auto()
    """There is more, but not from here."""
    LEFT = auto()
    STALLED = auto()
    DRAINING = auto()


class Frames(ABC):
    """Where a pump gets what it writes. It is entered meanwhile."""

    __slots__ = ("complete",)

    complete: bool
    """Whether all has been given."""

    def __init__(self) -> None:
        self.complete = False

    @abstractmethod
    async def next(self) -> Sequence[bytes]:
        """Whole frames, once there are some, until :attr:`complete`. Empty: nothing more comes. It may be cancelled."""

    async def __aenter__(self) -> Self:
        return self

    @abstractmethod
    async def __aexit__(self, *_: object) -> None: ...


class Pump:
    """Runs once."""

    __slots__ = (
        *("_cancels", "_drain", "_ended_by", "_loop", "_ping", "_ping_seconds", "_pinging", "_quiet_since"),
        *("_send", "_stall_seconds", "_task", "_timer", "_writes", "_writing_since"),
    )

    def __init__(self, send: Send, drain: Drain, *, ping: bytes, ping_seconds: float, stall_seconds: float) -> None:
        """``ping`` is written when nothing else was for ``ping_seconds``."""
        self._send = send
        self._drain = drain
        self._ping = ping
        self._ping_seconds = ping_seconds
        self._stall_seconds = stall_seconds
        self._loop = asyncio.get_running_loop()
        self._quiet_since = self._loop.time()
        self._writing_since = 0.0
        self._writes = 0  # that are under way
        self._cancels = 0
        self._ended_by: End | None = None
        self._task: asyncio.Task[Any] | None = None
        self._pinging: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, frames: Frames, receive: Receive) -> End:
        """Write all frames. Whatever ends it, ``frames`` has been left."""
        if self._drain.begun:
            return End.DRAINING
        task = self._task = cast(asyncio.Task[Any], asyncio.current_task())
        # In a task of its own: to wake one that waits deep below a server's and a framework's calls costs more than
        # to write an event.
        pumping = self._loop.create_task(self._write_all(frames))
        pumping.add_done_callback(self._pumped)
        self._drain.call(self._drained)
        self._timer = self._loop.call_later(self._ping_seconds, self._tick)
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._ended_by = self._ended_by or End.LEFT
        except asyncio.CancelledError:
            if self._ended_by is None or task.cancelling() > self._cancels:
                raise
        finally:
            self._task = None
            self._timer.cancel()
            self._drain.forget(self._drained)
            for _ in range(self._cancels):
                task.uncancel()
            await end_tasks([pumping] if self._pinging is None else [pumping, self._pinging])
        written = End.CLOSED if pumping.cancelled() else pumping.result()
        return written if written is End.COMPLETE else self._ended_by

    async def write(self, frame: bytes) -> None:
        """Write one frame, or several. Cancelled: the caller got all of it or nothing."""
        if not self._writes:
            self._writing_since = self._loop.time()
        self._writes += 1
        await self._send({"type": "http.response.body", "body": frame, "more_body": True})
        self._writes -= 1
        self._quiet_since = self._loop.time()

    async def _write_all(self, frames: Frames) -> End:
        try:
            async with frames:
                while not frames.complete:
                    ready = await frames.next()
                    if not ready:
                        break
                    chunks: Iterable[bytes] = ready if len(ready) == 1 else _chunks(ready)
                    for chunk in chunks:
                        await self.write(chunk)
            return End.COMPLETE if frames.complete else End.CLOSED
        except PipeserveError as error:
            # The answer is under way, so its status can't tell; the caller reconnects and is told then.
            _log.warning("stream ended early", extra={"error": str(error)})
            return End.CLOSED

    def _pumped(self, _: object) -> None:
        self._end(End.CLOSED)

    def _drained(self) -> None:
        self._end(End.DRAINING)

    def _tick(self) -> None:
        now = self._loop.time()
        if self._writes:
            seconds = self._writing_since + self._stall_seconds - now
            if seconds <= 0:
                self._end(End.STALLED)
                return
            seconds = min(seconds, self._ping_seconds)  # it may be silent from its next moment on
        else:
            seconds = self._quiet_since + self._ping_seconds - now
            if seconds <= 0:
                self._pinging = self._loop.create_task(self.write(self._ping))
                seconds = self._ping_seconds
        self._timer = self._loop.call_later(seconds, self._tick)

    def _end(self, why: End) -> None:
        if self._task is not None and self._ended_by is None:
            self._ended_by = why
            self._cancels += 1
            self._task.cancel()


def _chunks(frames: Sequence[bytes]) -> Iterator[bytes]:
    """Many frames in as few writes as is good for the memory of both sides; each is made when it is written."""
    start = size = 0
    for at, frame in enumerate(frames):
        size += len(frame)
        if size >= CHUNK:
            yield b"".join(frames[start : at + 1])
            start, size = at + 1, 0
    if start < len(frames):
        yield b"".join(frames[start:])
