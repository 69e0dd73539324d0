"""A client of the WebSocket ``/stream`` for tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.api.harness import Served
from websockets.asyncio.client import ClientConnection, connect

Frame = dict[str, Any]


class Socket:
    """Sends and receives frames; keeps those that it was not asked for yet."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.kept: list[Frame] = []

    async def send(self, op: str, **members: Any) -> None:
        await self.connection.send(json.dumps({"op": op, **members}))

    async def next(self) -> Frame:
        """The next frame in order."""
        return self.kept.pop(0) if self.kept else await self._receive()

    async def find(self, wanted: Callable[[Frame], bool]) -> Frame:
        """The first frame like that; those before it are kept in order."""
        for index, frame in enumerate(self.kept):
            if wanted(frame):
                return self.kept.pop(index)
        while not wanted(frame := await self._receive()):
            self.kept.append(frame)
        return frame

    async def answer(self, ref: str) -> Frame:
        """The frame that answers ``ref``."""
        return await self.find(lambda frame: frame.get("ref") == ref)

    async def until_end(self, job_id: str) -> list[Frame]:
        """The frames of a job, through its end."""
        found: list[Frame] = []
        while not found or found[-1]["op"] != "end":
            found.append(await self.find(lambda frame: job_of(frame) == job_id))
        return found

    async def pong(self) -> list[Frame]:
        """Everything that was sent before the answer to a ping."""
        await self.send("ping", ref="pong")
        await self.answer("pong")
        before, self.kept = self.kept, []
        return before

    async def _receive(self) -> Frame:
        text = await self.connection.recv()
        assert isinstance(text, str)
        return json.loads(text)


def job_of(frame: Frame) -> str | None:
    """The job that a frame is about."""
    inner = frame.get("event") or frame.get("job") or frame
    return inner.get("job_id")


def seqs(frames: list[Frame]) -> list[int]:
    """The numbers of the events among the frames."""
    return [frame["event"]["seq"] for frame in frames if frame["op"] == "event"]


@asynccontextmanager
async def socket(served: Served, query: str = "", **options: Any) -> AsyncIterator[Socket]:
    """Open one. ``options``: of ``websockets.connect``."""
    url = served.url.replace("http", "ws", 1) + "/stream" + query
    async with connect(url, compression=None, proxy=None, **options) as connection:
        yield Socket(connection)
