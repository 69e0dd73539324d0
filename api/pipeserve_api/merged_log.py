"""The logs of several jobs as one stream of Server-Sent Events.

Each event has the position in all logs as its id, so that a reconnect goes on in each exactly where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pipeserve.events import sse_frame
from pipeserve.runtime.ports import LogEntry, LogGap
from pipeserve.runtime.tasks import end_tasks
from pipeserve_api.lookup import JobLog
from pipeserve_api.positions import Positions
from pipeserve_api.pump import Frames
from pipeserve_api.sse import gap_frame, position_frame

_News = tuple[int, Sequence[LogEntry | LogGap] | Exception]
"""The job's place in the list, and what its log gave; nothing at its end."""


class MergedFrames(Frames):
    """All that follows ``positions`` in ``logs``, until each has ended.

    ``finished``: the places of the logs of which everything has been read. ``types``: only events of these types.
    """

    __slots__ = ("_finished", "_job_ids", "_logs", "_news", "_open", "_positions", "_readers", "_told", "_types")

    def __init__(
        self,
        job_ids: Sequence[str],
        logs: Sequence[JobLog],
        positions: Positions,
        *,
        finished: frozenset[int],
        types: frozenset[str] | None,
    ) -> None:
        super().__init__()
        self._job_ids = job_ids
        self._logs = logs
        self._positions = positions
        self._told = ""
        self._types = types
        self._finished = set(finished)
        self._open = len(logs) - len(finished)
        # A log is read on once this one has taken what it gave, and all share what may be read at once: so little
        # waits, however slow the caller is.
        self._news: asyncio.Queue[_News] = asyncio.Queue(maxsize=1)
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> MergedFrames:
        for at in range(len(self._logs)):
            if at not in self._finished:
                self._readers.append(asyncio.create_task(self._read(at), name=f"merged-{self._job_ids[at]}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_tasks(self._readers)

    async def next(self) -> Sequence[bytes]:
        """Raises what reading a log raises."""
        while self._open:
            at, news = await self._news.get()
            if isinstance(news, Exception):
                raise news
            if not news:
                self._open -= 1
            frames = self._frames(at, news)
            if len(self._finished) == len(self._logs):
                self.complete = True
                if self._told != str(self._positions):
                    frames.append(position_frame(str(self._positions)))
            if frames:
                return frames
        return ()

    def _frames(self, at: int, entries: Sequence[LogEntry | LogGap]) -> list[bytes]:
        frames: list[bytes] = []
        numbers, types = self._positions.numbers, self._types
        for entry in entries:
            if isinstance(entry, LogGap):
                numbers[at] = entry.last
                self._told = str(self._positions)
                frames.append(gap_frame(entry, position=self._told, job_id=self._job_ids[at]))
                continue
            numbers[at] = entry.seq
            if types is None or entry.event_type in types:
                self._told = str(self._positions)
                frames.append(sse_frame(entry.seq, entry.body, self._told))
            if entry.terminal:
                self._finished.add(at)
        return frames

    async def _read(self, at: int) -> None:
        try:
            async with self._logs[at].follow(after=self._positions.numbers[at]) as follower:
                follower.share(len(self._logs))
                while entries := await follower.batch():
                    await self._news.put((at, entries))
            await self._news.put((at, ()))
        except Exception as error:  # whatever it is, it is for the one who reads: else they would wait for ever
            await self._news.put((at, error))
