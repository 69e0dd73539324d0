"""Takes webhooks that are due from the outbox and has their events sent. One runs in each API process.

An event is sent at least once: a process that dies between the receiver's answer and the note of it leaves the webhook
held, the hold runs out, and the next process sends the event again under the same ``webhook-id``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any, Self

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.backoff import Backoff
from pipeserve.runtime.ports import DueWebhook, EventLog, JobLedger, WebhookOutbox, WebhookProgress
from pipeserve.settings import WebhookSettings
from pipeserve.webhooks.connections import Resolve, resolve
from pipeserve.webhooks.delivery import Delivery
from pipeserve.webhooks.pauses import Pauses, pause_after
from pipeserve.webhooks.receivers import Receivers
from pipeserve.webhooks.sender import Sender
from pipeserve.webhooks.signature import Signer
from pipeserve.webhooks.slow_hosts import SlowHosts

CONCURRENCY = 16
"""Jobs that one process sends for at once. Each job's events go one after the other."""

SLOW_SHARE = 4
"""One of so many places at most is for a receiver that is not known to answer soon."""

ROUND_SECONDS = 5.0
"""After so long with one job its progress is noted, and others have their turn."""

STOP_SECONDS = 5.0
"""That requests under way have to end when the process shuts down."""

_LONGEST_WAIT = 5.0  # seconds between two looks at the outbox if no news comes: news may be lost
_SHORTEST_WAIT = 0.05  # seconds: a job that tells much makes news with each event
_LAST_LOOK_SECONDS = 1.0  # for a look under way at the end; what it takes is given back at once
_STORE_SECONDS = 10.0  # added to the hold, for reading the log and for noting the progress

_log = logging.getLogger(__name__)


class WebhookDispatcher:
    """Sends what is due while it is entered.

    ``look_up`` and ``pauses`` are for tests.
    """

    def __init__(
        self,
        outbox: WebhookOutbox,
        ledger: JobLedger,
        log: EventLog,
        signer: Signer,
        settings: WebhookSettings,
        *,
        user_agent: str = "pipeserve",
        look_up: Resolve = resolve,
        pauses: Pauses = pause_after,
        concurrency: int = CONCURRENCY,
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        self._outbox = outbox
        self._sender = Sender(
            Receivers.parse(settings.allow),
            settings.timeout,
            user_agent=user_agent,
            connections=concurrency,
            look_up=look_up,
        )
        self._delivery = Delivery(ledger, log, signer, self._sender, settings.attempts, pauses)
        self._hold = ROUND_SECONDS + settings.timeout + _STORE_SECONDS
        self._slow = SlowHosts(max(1, concurrency // SLOW_SHARE))
        self._concurrency = concurrency
        self._stop_seconds = stop_seconds
        self._sending: set[asyncio.Task[None]] = set()
        self._look = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._sender)
            stack.push_async_callback(self._finish_sending)
            dispatching = asyncio.create_task(self._dispatch(), name="webhooks")
            stack.push_async_callback(_end, [dispatching], after=_LAST_LOOK_SECONDS)
            stack.push_async_callback(_end, [asyncio.create_task(self._listen(), name="webhook-news")])
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        self._look.set()
        await self._stack.aclose()

    async def _dispatch(self) -> None:
        outages = Backoff(0.1, _LONGEST_WAIT)
        while not self._stopping.is_set():
            self._look.clear()
            free = self._concurrency - len(self._sending)
            if free > 0:
                try:
                    due, next_in = await self._outbox.due(free, hold=self._hold)
                except StoreUnavailableError:
                    await asyncio.sleep(outages.next())
                    continue
                except Exception:  # whatever it is, webhooks that are due later must not wait for a restart
                    _log.exception("the outbox of webhooks can't be read")
                    await asyncio.sleep(outages.next())
                    continue
                outages.reset()
                for webhook in due:
                    self._send(webhook)
                if len(due) < free:
                    await asyncio.sleep(_SHORTEST_WAIT)
                    await _wait(self._look, _LONGEST_WAIT if next_in is None else min(next_in, _LONGEST_WAIT))
                    continue
            await _wait(self._look, _LONGEST_WAIT)  # until a place gets free

    async def _listen(self) -> None:
        while True:
            try:
                async with self._outbox.news() as news:
                    async for _ in news:
                        self._look.set()
                return
            except StoreUnavailableError:
                await asyncio.sleep(1.0)

    def _send(self, due: DueWebhook) -> None:
        task = asyncio.create_task(self._round(due), name=f"webhook-{due.job_id}")
        self._sending.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._look.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # It stays held and is tried again when the hold runs out.
            _log.error("webhook failed by a fault of this service", exc_info=error, extra={"task": task.get_name()})

    async def _round(self, due: DueWebhook) -> None:
        """Send what one job has to send, for less time than it is held for, and note how far that came."""
        held_until = time.monotonic() + self._hold
        put_off = self._slow.enter(due.webhook.url)
        if put_off is not None:
            progress = WebhookProgress(after=due.after, attempt=due.attempt, retry_in=put_off)
        else:
            progress = await self._deliver(due)
        outages = Backoff(0.1, 2.0)
        while progress is not None and time.monotonic() < held_until:
            try:
                await self._outbox.settle(due.job_id, progress)
                return
            except StoreUnavailableError:
                await asyncio.sleep(outages.next())

    async def _deliver(self, due: DueWebhook) -> WebhookProgress | None:
        until = time.monotonic() + ROUND_SECONDS
        try:
            progress = await self._delivery.send(due, until=until, stopping=self._stopping)
        finally:
            self._slow.leave(due.webhook.url)
        if progress is not None and progress.deliveries:
            last = progress.deliveries[-1]
            self._slow.note(due.webhook.url, None if last.status_code is None else last.duration)
        return progress

    async def _finish_sending(self) -> None:
        """Let requests under way end; what takes too long stays held, and is sent again by another process."""
        await _end(self._sending, after=self._stop_seconds)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


async def _end(tasks: Iterable[asyncio.Task[Any]], *, after: float = 0.0) -> None:
    """Wait ``after`` seconds, then cancel until each has ended.

    Again and again: redis-py can take a cancellation for its own timeout and swallow it.
    """
    pending = set(tasks)
    if pending and after > 0:
        _, pending = await asyncio.wait(pending, timeout=after)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
