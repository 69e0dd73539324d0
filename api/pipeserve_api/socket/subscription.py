"""One job that a socket follows: pulls from the job's log as fast as its reader takes, little at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from pipeserve.errors import ProblemError
from pipeserve.events import EventType, event_type_of
from pipeserve.runtime.ports import LogEntry, LogGap
from pipeserve.runtime.tasks import end_tasks
from pipeserve_api.drain import Drain
from pipeserve_api.lookup import JobLog
from pipeserve_api.problems import unexpected_problem
from pipeserve_api.socket import wire
from pipeserve_api.socket.ahead import Ahead
from pipeserve_api.socket.credit import Credit
from pipeserve_api.socket.sender import Sender, SocketGone

_log = logging.getLogger(__name__)


class Subscription:
    """Sends what a log has after a number, until its end.

    ``of``: how many its socket follows. ``on_end`` is called before the last frame is sent, with whether the log has
    ended.
    """

    def __init__(
        self,
        job_id: str,
        log: JobLog,
        *,
        after: int,
        types: frozenset[str] | None,
        sender: Sender,
        credit: Credit,
        drain: Drain,
        instance: str,
        on_end: Callable[[bool], object],
        of: int = 1,
    ) -> None:
        self.job_id = job_id
        self.log = log
        self.position: int = after
        """The number of the last event that is behind it."""
        self._of = of
        self._types = types
        self._sender = sender
        self._credit = credit
        self._drain = drain
        self._instance = instance
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin to send. The task ends with the subscription."""
        self._task = asyncio.create_task(self._run(), name=f"socket-{self.job_id}")
        return self._task

    async def stop(self) -> None:
        """Send nothing more."""
        if self._task is not None:
            await end_tasks([self._task])

    async def _run(self) -> None:
        try:
            last = await self._last_frame()
            if last is not None:
                await self._sender.send(last)
        except SocketGone:
            return

    async def _last_frame(self) -> bytes | None:
        """Send the log; what is to be said then. None when this process drains: the job goes on elsewhere."""
        ended = False
        try:
            await self._send_log()
            ended = not self._drain.begun
        except ProblemError as error:
            problem = error.problem(job_id=self.job_id, instance=self._instance)
            return wire.error(problem, ref=None, job_id=self.job_id, retry_after=error.retry_after)
        except SocketGone:
            raise
        except Exception:  # a fault here must not leave a subscription that is silent for ever
            _log.exception("a subscription failed", extra={"job_id": self.job_id})
            problem = unexpected_problem(self._instance).model_copy(update={"job_id": self.job_id})
            return wire.error(problem, ref=None, job_id=self.job_id)
        finally:
            self._on_end(ended)
        return wire.end(self.job_id) if ended else None

    async def _send_log(self) -> None:
        async with self.log.follow(after=self.position) as entries:
            entries.share(self._of)
            ahead = Ahead(entries, self._types)
            try:
                while (entry := await ahead.take()) is not None:
                    if isinstance(entry, LogGap):
                        await self._sender.send(wire.gap(self.job_id, entry))
                        self.position = entry.last
                    elif self._credit.limited:
                        self.position = await self._send_on_credit(entry, ahead)
                    else:
                        await self._sender.send(wire.event(entry, 0))
                        self.position = entry.seq
            finally:
                await ahead.close()

    async def _send_on_credit(self, entry: LogEntry, ahead: Ahead) -> int:
        """Send ``entry``, or the progress that has overtaken it until there is credit. Returns what was sent."""
        turn = self._credit.ask()
        coalesced = 0
        try:
            await asyncio.sleep(0)  # credit that is there is given by now, and nothing is overtaken
            waited = not turn.done()
            while waited and (newer := await self._overtaking(entry, ahead, turn)) is not None:
                entry = newer
                coalesced += 1
            await turn
            await self._sender.send(wire.event(entry, coalesced))
        except BaseException:
            self._credit.give_back(turn)
            raise
        return entry.seq

    async def _overtaking(self, entry: LogEntry, ahead: Ahead, turn: asyncio.Future[None]) -> LogEntry | None:
        """The progress right after ``entry``, if that is progress too; None: no such thing comes before the turn."""
        if not _is_progress(entry):
            return None
        looking = ahead.look()
        if not turn.done():
            await asyncio.wait({turn, looking}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)  # what the log has at hand is there by now
        if not looking.done():
            return None
        newer = looking.result()
        if not (isinstance(newer, LogEntry) and _is_progress(newer)):
            return None
        await ahead.take()
        return newer


def _is_progress(entry: LogEntry) -> bool:
    return event_type_of(entry.body) == EventType.PROGRESS_UPDATE
