"""Reading the jobs' logs: what is there, and what comes.

The stream is the record; its entry ids are the events' numbers. A follower subscribes, waits for the server's
acknowledgement, reads the record from its position and then takes what it is told, dropping what it has. A number
that does not follow the last one sends it back to the record.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from pipeserve.errors import StoreUnavailableError
from pipeserve.events import is_terminal
from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import LogEntry, LogGap
from pipeserve.runtime.recording.brief import Brief
from pipeserve.store.connection import Connection
from pipeserve.store.hub import Hub, Subscription
from pipeserve.store.keys import Keys

PAGE = 1000
RETRY_PAUSE = 0.2
"""Seconds between tries while the store is away."""


class RedisEventLog:
    """An ``EventLog`` on Redis. ``follow`` needs the hub to run."""

    def __init__(self, connection: Connection, keys: Keys, hub: Hub) -> None:
        self._connection = connection
        self._keys = keys
        self._hub = hub

    async def read(self, job_id: str, *, after: int = 0, limit: int = PAGE) -> list[LogEntry | LogGap]:
        """What follows number ``after``, at most ``limit`` entries; a gap stands first. Empty: nothing yet."""
        entries, _ = await self._page(job_id, after, limit)
        return entries

    @asynccontextmanager
    async def follow(self, job_id: str, *, after: int = 0) -> AsyncGenerator[AsyncIterator[LogEntry | LogGap]]:
        """All that follows ``after``, as it happens, without hole or repeat; ends after the terminal event.

        It lives through outages of the store. It also ends when the log is closed. Raises StoreUnavailableError when
        the store is away at the start.
        """
        async with (
            self._hub.subscribe(self._keys.events(job_id)) as subscription,
            aclosing(self._entries(job_id, after, subscription)) as entries,
        ):
            yield entries

    def close(self) -> None:
        """End all followers, now and from now on: the process shuts down."""
        self._hub.close()

    async def _entries(self, job_id: str, after: int, subscription: Subscription) -> AsyncGenerator[LogEntry | LogGap]:
        position = after
        while not subscription.closed:
            if subscription.must_read:
                subscription.must_read = False
                try:
                    entries, over = await self._page(job_id, position, PAGE)
                except StoreUnavailableError:
                    subscription.must_read = True
                    await subscription.wait(RETRY_PAUSE)
                    continue
            else:
                entries, over = _in_order(subscription, position)
            for entry in entries:
                yield entry
                position = entry.seq if isinstance(entry, LogEntry) else entry.last
                if isinstance(entry, LogEntry) and is_terminal(entry.body):
                    return
            if over:
                return
            if len(entries) >= PAGE:
                subscription.must_read = True
            if not entries and not subscription.must_read:
                await subscription.wait()

    async def _page(self, job_id: str, after: int, limit: int) -> tuple[list[LogEntry | LogGap], bool]:
        """Entries after ``after``, and whether nothing can follow them: the job has ended, or is gone."""
        rows, fields = await self._connection.pipeline(
            [
                ("XRANGE", self._keys.events(job_id), f"({after}-0", "+", "COUNT", limit),
                ("HMGET", self._keys.job(job_id), "status", "last_seq", "brief"),
            ]
        )
        entries = [LogEntry(int(entry_id.partition(b"-")[0]), entry[b"d"]) for entry_id, entry in rows]
        status, last_seq, brief = fields
        ended = status is None or JobStatus(status.decode()).terminal
        newest = entries[-1].seq if entries else after
        over = ended and newest >= int(last_seq or 0)
        if brief is not None and entries and entries[0].seq > after + 1:
            bodies = Brief.decode(job_id, brief).bodies(after, entries[0].seq - 1)
            told: list[LogEntry | LogGap] = [LogEntry(after + 1 + index, body) for index, body in enumerate(bodies)]
            return [*told, *entries][:limit], over and len(told) + len(entries) <= limit
        if entries and entries[0].seq > after + 1:
            return [LogGap(after + 1, entries[0].seq - 1, "trimmed"), *entries], over
        return [*entries], over


def _in_order(subscription: Subscription, position: int) -> tuple[list[LogEntry | LogGap], bool]:
    """What was told and follows ``position`` without a hole, and whether the log has ended before ``position``.

    A hole sends the follower to the record.
    """
    entries: list[LogEntry | LogGap] = []
    over = False
    for message in subscription.take():
        number, _, body = message.partition(b":")
        seq = int(number)
        if seq <= position:
            over = over or is_terminal(body)
            continue
        if seq > position + 1:
            subscription.must_read = True
            break
        entries.append(LogEntry(seq, body))
        position = seq
    return entries, over
