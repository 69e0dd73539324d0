"""The webhooks of this process's jobs that have something to send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from pipeserve.runtime.memory.record import Outgoing, Record
from pipeserve.runtime.memory.state import MemoryState
from pipeserve.runtime.ports import DueWebhook, WebhookProgress


class MemoryWebhookOutbox:
    """A ``WebhookOutbox`` in this process."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def due(self, limit: int, *, hold: float) -> tuple[list[DueWebhook], float | None]:
        """Up to ``limit`` that are due, held for ``hold`` seconds; and in how many seconds the next one is due."""
        now = self._state.clock()
        found = [
            DueWebhook(record.job_id, outgoing.webhook, outgoing.after, outgoing.attempt)
            for due_at, record, outgoing in self._entries()[:limit]
            if due_at <= now
        ]
        for webhook in found:
            outgoing = self._state.records[webhook.job_id].outgoing
            assert outgoing is not None
            outgoing.due_at = now + hold
        rest = self._entries()
        return found, max(rest[0][0] - now, 0.0) if rest else None

    async def settle(self, job_id: str, progress: WebhookProgress) -> None:
        """Note how far the sender has come and give the webhook back."""
        record = self._state.get(job_id)
        if record is None or record.outgoing is None:
            return
        outgoing = record.outgoing
        outgoing.status, outgoing.after, outgoing.attempt = progress.status, progress.after, progress.attempt
        outgoing.deliveries.extend(progress.deliveries)
        outgoing.due_at = None
        if progress.status != "active":
            return
        now = self._state.clock()
        if progress.retry_in is not None:
            outgoing.due_at = now + progress.retry_in
        elif record.last_seq > progress.after and (outgoing.webhook.live or record.status.terminal):
            outgoing.due_at = now
        if outgoing.due_at is not None:
            self._state.tell_senders()

    @asynccontextmanager
    async def news(self) -> AsyncGenerator[AsyncIterator[None]]:
        """Something may be due. It ends when the log is closed."""
        news = asyncio.Event()
        self._state.senders.add(news)
        try:
            async with aclosing(self._news(news)) as signals:
                yield signals
        finally:
            self._state.senders.discard(news)

    async def _news(self, news: asyncio.Event) -> AsyncGenerator[None]:
        while not self._state.closed:
            await news.wait()
            news.clear()
            if not self._state.closed:
                yield

    def _entries(self) -> list[tuple[float, Record, Outgoing]]:
        """All that have, or may have, something to send; the one that is due first stands first."""
        entries = [
            (outgoing.due_at, record, outgoing)
            for record in self._state.all()
            if (outgoing := record.outgoing) is not None and outgoing.due_at is not None
        ]
        return sorted(entries, key=lambda entry: (entry[0], entry[1].job_id))
