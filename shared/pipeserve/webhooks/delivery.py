"""Sends one job's events to its receiver, in order, and says how far that came."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Literal

import orjson

from pipeserve.errors import StoreUnavailableError
from pipeserve.events import event_type_of, is_terminal, number
from pipeserve.jobs import WebhookDelivery
from pipeserve.runtime.ports import DueWebhook, EventLog, JobLedger, LogEntry, LogGap, WebhookProgress
from pipeserve.webhooks.pauses import Pauses
from pipeserve.webhooks.sender import Answer, Sender
from pipeserve.webhooks.signature import Signer
from pipeserve.webhooks.slow_hosts import host_of

PAGE = 100
"""Events that are read from a log at once."""

WebhookStatus = Literal["active", "done", "failed", "disabled"]

_GONE = 410

_log = logging.getLogger(__name__)


class Delivery:
    """Sends a job's wanted events. ``attempts``: tries at one event before the job's webhook has failed."""

    def __init__(
        self, ledger: JobLedger, log: EventLog, signer: Signer, sender: Sender, attempts: int, pauses: Pauses
    ) -> None:
        self._ledger = ledger
        self._events = log
        self._signer = signer
        self._sender = sender
        self._attempts = attempts
        self._pauses = pauses

    async def send(self, due: DueWebhook, *, until: float, stopping: asyncio.Event) -> WebhookProgress | None:
        """Send until all is sent, a try fails, ``until`` (``time.monotonic``) has passed or the process is to stop.

        None: the store is away, and there is nothing to note.
        """
        course = _Course(due)
        try:
            while course.open and time.monotonic() < until and not stopping.is_set():
                entries = await self._next(course)
                if not entries:
                    break
                for entry in entries:
                    await self._take(course, entry)
                    if not course.open or time.monotonic() >= until or stopping.is_set():
                        break
        except StoreUnavailableError:
            return course.progress() if course.moved else None
        return course.progress()

    async def _next(self, course: _Course) -> list[LogEntry | LogGap]:
        """The next page of the job's log. Without one, the course is over if the job is."""
        job_id = course.due.job_id
        entries = await self._events.read(job_id, after=course.after, limit=PAGE)
        if entries:
            return entries
        job = await self._ledger.get(job_id)
        if job is None:
            course.status = "done"
            return []
        # Read once more: what the job has come to since then stands in the log, unless the log is gone.
        entries = await self._events.read(job_id, after=course.after, limit=PAGE)
        if not entries:
            course.after = max(course.after, job.last_seq)
            course.status = "done" if job.status.terminal else "active"
        return entries

    async def _take(self, course: _Course, entry: LogEntry | LogGap) -> None:
        """Deal with one entry: send it, if it is wanted."""
        if isinstance(entry, LogGap):
            course.after, course.attempt = entry.last, 0
            return
        event_type = event_type_of(entry.body)
        if event_type in course.due.webhook.events:
            answer = await self._post(course.due, entry, event_type)
            course.note(entry.seq, event_type, answer)
            if answer.error is not None:
                self._failed(course, answer)
                return
        course.after = entry.seq
        course.attempt = 0
        if is_terminal(entry.body):
            course.status = "done"

    async def _post(self, due: DueWebhook, entry: LogEntry, event_type: str) -> Answer:
        body = message(entry, event_type)
        headers = self._signer.headers(f"{due.job_id}:{entry.seq}", int(time.time()), body)
        return await self._sender.post(due.webhook.url, headers, body)

    def _failed(self, course: _Course, answer: Answer) -> None:
        course.attempt += 1
        if answer.status_code == _GONE:
            course.status = "disabled"
        elif course.attempt >= self._attempts:
            course.status = "failed"
        else:
            asked = answer.retry_after if answer.status_code in (429, 503) else None
            course.retry_in = self._pauses(course.attempt, asked)
            return
        # The host alone: a URL's path and query are often secrets.
        host = host_of(course.due.webhook.url)
        told = {"job_id": course.due.job_id, "host": host, "webhook_status": course.status}
        _log.warning("webhook ended", extra=told)


class _Course:
    """How far one round with a job has come."""

    def __init__(self, due: DueWebhook) -> None:
        self.due = due
        self.after = due.after
        self.attempt = due.attempt
        self.retry_in: float | None = None
        self.status: WebhookStatus = "active"
        self._deliveries: list[WebhookDelivery] = []

    @property
    def open(self) -> bool:
        """Whether the next event can be sent."""
        return self.status == "active" and self.retry_in is None

    @property
    def moved(self) -> bool:
        """Whether there is anything to note."""
        return bool(self._deliveries) or self.after > self.due.after or self.status != "active"

    def note(self, seq: int, event_type: str, answer: Answer) -> None:
        """Write down one try."""
        delivery = WebhookDelivery(
            seq=seq,
            event_type=event_type,
            attempt=self.attempt + 1,
            at=datetime.now(UTC),
            status_code=answer.status_code,
            error=answer.error,
            duration=round(answer.duration, 6),
        )
        self._deliveries.append(delivery)

    def progress(self) -> WebhookProgress:
        """For the outbox."""
        return WebhookProgress(
            after=self.after,
            deliveries=tuple(self._deliveries),
            retry_in=self.retry_in,
            attempt=self.attempt,
            status=self.status,
        )


def message(entry: LogEntry, event_type: str) -> bytes:
    """The body of one event's request. ``data`` is the numbered event, byte for byte as on every transport."""
    timestamp = orjson.loads(entry.body)["timestamp"]
    return b'{"type":"%b","timestamp":"%b","data":%b}' % (
        event_type.encode(),
        timestamp.encode(),
        number(entry.seq, entry.body),
    )
