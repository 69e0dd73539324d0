"""Reading the jobs' logs: what is there, and what comes.

The stream is the record; its entry ids are the events' numbers. A follower subscribes, waits for the server's
acknowledgement, reads the record from its position and then takes what it is told, dropping what it has. A number
that does not follow the last one sends it back to the record.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Self

from pipeserve.errors import StoreUnavailableError
from pipeserve.jobs import JobStatus
from pipeserve.runtime.follower import Follower
from pipeserve.runtime.ports import LogEntry, LogGap
from pipeserve.runtime.recording.brief import Brief
from pipeserve.store.connection import Connection
from pipeserve.store.hub import Hub
from pipeserve.store.keys import Keys
from pipeserve.store.subscription import Subscription

PAGE = 1000
_LEAST_PAGE = 4
_EVENT_BYTES = 4_096
"""What an event takes, until some have been seen: one may take 100 KB, most take 400 bytes."""
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
        entries, _ = await self.page(job_id, after, limit)
        return entries

    def follow(self, job_id: str, *, after: int = 0) -> RedisFollower:
        """All that follows ``after``, as it happens, without hole or repeat; ends after the terminal event.

        It lives through outages of the store. It also ends when the log is closed. Entering it raises
        StoreUnavailableError when the store is away.
        """
        return RedisFollower(self._hub, self._keys.events(job_id), partial(self.page, job_id), after)

    def close(self) -> None:
        """End all followers, now and from now on: the process shuts down."""
        self._hub.close()

    async def page(self, job_id: str, after: int, limit: int) -> tuple[list[LogEntry | LogGap], bool]:
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
        last = int(last_seq or 0)
        over = ended and newest >= last
        # It has ended between the two commands, or its entries are gone: only a look at what is there now tells.
        if ended and not (over or rows or await self._has_more(job_id, after)):
            return [LogGap(after + 1, last, "trimmed")], True
        if brief is not None and entries and entries[0].seq > after + 1:
            bodies = Brief.decode(job_id, brief).bodies(after, entries[0].seq - 1)
            told: list[LogEntry | LogGap] = [LogEntry(after + 1 + index, body) for index, body in enumerate(bodies)]
            return [*told, *entries][:limit], over and len(told) + len(entries) <= limit
        if entries and entries[0].seq > after + 1:
            return [LogGap(after + 1, entries[0].seq - 1, "trimmed"), *entries], over
        return [*entries], over

    async def _has_more(self, job_id: str, after: int) -> bool:
        key = self._keys.events(job_id)
        return bool(await self._connection.call("XRANGE", key, f"({after}-0", "+", "COUNT", 1))


class RedisFollower(Follower):
    """Follows one job. What the hub is told is one entry for all followers in this process."""

    __slots__ = ("_channel", "_ended", "_event_bytes", "_hub", "_page", "_position", "_subscription")

    def __init__(
        self,
        hub: Hub,
        channel: str,
        page: Callable[[int, int], Awaitable[tuple[list[LogEntry | LogGap], bool]]],
        after: int,
    ) -> None:
        super().__init__()
        self._hub = hub
        self._channel = channel
        self._page = page
        self._position = after
        self._event_bytes = _EVENT_BYTES
        self._ended = False
        self._subscription: Subscription[LogEntry] | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self._hub.join(self._channel, _entry)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._subscription is not None:
            self._hub.leave(self._subscription)

    async def batch(self) -> Sequence[LogEntry | LogGap]:
        subscription = self._subscription
        assert subscription is not None, "enter it first"
        while not (self._ended or subscription.closed):
            if subscription.must_read:
                entries = await self._recorded(subscription)
            else:
                entries = self._told(subscription)
            if entries:
                last = entries[-1]
                self._position = last.seq if isinstance(last, LogEntry) else last.last
                if isinstance(last, LogEntry) and last.terminal:
                    self._ended = True
                return entries
            if not (subscription.must_read or self._ended):
                await subscription.wait()
        return ()

    async def _recorded(self, subscription: Subscription[LogEntry]) -> Sequence[LogEntry | LogGap]:
        """What the record has, a page of it: as many entries as take :attr:`batch_bytes`, going by those before."""
        subscription.must_read = False
        limit = min(PAGE, max(_LEAST_PAGE, self.batch_bytes // self._event_bytes))
        try:
            entries, self._ended = await self._page(self._position, limit)
        except StoreUnavailableError:
            subscription.must_read = True
            await subscription.wait(RETRY_PAUSE)
            return ()
        except BaseException:  # given up: the next call reads
            subscription.must_read = True
            raise
        if len(entries) >= limit:
            subscription.must_read = True
        if entries:
            size = sum(len(entry.body) for entry in entries if isinstance(entry, LogEntry))
            self._event_bytes = max(1, size // len(entries))
        return entries

    def _told(self, subscription: Subscription[LogEntry]) -> Sequence[LogEntry]:
        """What was told and follows without a hole. A hole sends the follower to the record."""
        told = subscription.take()
        position = self._position
        for at, entry in enumerate(told):
            if entry.seq != position + 1:
                return self._sorted_out(told[at:], told[:at], subscription)
            position = entry.seq
        return told

    def _sorted_out(
        self, rest: Sequence[LogEntry], entries: list[LogEntry], subscription: Subscription[LogEntry]
    ) -> Sequence[LogEntry]:
        """``entries`` and what of ``rest`` follows them; part of it may be known already."""
        position = entries[-1].seq if entries else self._position
        for entry in rest:
            if entry.seq <= position:
                self._ended = self._ended or entry.terminal  # whoever began beyond the end
            elif entry.seq > position + 1:
                subscription.must_read = True
                break
            else:
                entries.append(entry)
                position = entry.seq
        return entries


def _entry(message: bytes) -> LogEntry:
    """What a log's channel tells."""
    number, _, body = message.partition(b":")
    return LogEntry(int(number), body)
