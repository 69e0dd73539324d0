"""One run's own log in this process: what its steps report, filtered by capture, coalesced and numbered.

The run appends from any thread. The recorder reads it to write the job's log in the store, and a stream of the same
process follows it directly. Events are encoded when somebody first reads them, not while the run is waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson

from pipeserve.errors import Problem
from pipeserve.events import Event, EventType, encode_body
from pipeserve.jobs import TERMINAL_EVENT_OF, JobStatus, Progress, StepReport
from pipeserve.runtime.ports import LogEntry, LogGap, RunView
from pipeserve.runtime.progress import ProgressTracker
from pipeserve.runtime.run import RunResult, StepRecord
from pipeserve.sdk.capture import Capture

STEPS_SHOWN = 1000
"""Steps that a job's record lists."""


class RunLog:
    """An :class:`~pipeserve.runtime.run.EventSink` that numbers and keeps. Make it on the loop its readers run on."""

    def __init__(
        self,
        job_id: str,
        attempt: int,
        capture: Capture,
        total_steps: int | None,
        *,
        limit: int = 10_000,
        recorded: bool = False,
        on_full: Callable[[], object] | None = None,
    ) -> None:
        """``recorded``: a recorder writes the log elsewhere, and nothing goes before it has (:meth:`written`).

        ``on_full`` is called on the loop, once, when there are ``limit`` entries.
        """
        self.job_id = job_id
        self.attempt = attempt
        self._capture = capture
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._entries: list[Event | bytes] = []
        self._dropped = 0  # entries before the first kept one
        self._written = 0 if recorded else None  # through which number entries may go; None: any
        self._on_full = on_full
        self._tracker = ProgressTracker(total_steps)
        self._records: dict[str, StepRecord] = {}
        self._closed = False
        self._ended = False
        self._progress_timer = False
        self._readers: set[asyncio.Event] = set()

    # ---- the run writes

    def send(self, event: Event) -> None:
        """Take one event, from any thread."""
        event_type = event.event_type
        if (event_type is EventType.LOG and not self._capture.logs) or (
            event_type is EventType.METADATA and not self._capture.metadata
        ):
            return
        with self._lock:
            if self._closed:
                return
            self._tracker.note(event)
            if event_type is not EventType.PROGRESS_UPDATE:
                self._note_step(event)
                self._append(event)
            update = self._tracker.update(self.job_id, self.attempt, event.timestamp)
            if update is not None:
                self._append(update)
            elif event_type is EventType.PROGRESS_UPDATE and not self._progress_timer:
                # Too soon after the last: the newest value follows, even if the step then falls silent.
                self._progress_timer = True
                self._on_loop(self._send_progress_later)
        if self._readers:
            self._on_loop(self._wake)

    def close(self, terminal: Event) -> None:
        """End the log with its terminal event. What an abandoned thread still reports is dropped."""
        with self._lock:
            if self._closed:
                return
            if (update := self._tracker.update(self.job_id, self.attempt, terminal.timestamp, force=True)) is not None:
                self._append(update)
            self._append(terminal)
            self._closed = True
            self._ended = terminal.event_type is EventType.PIPELINE_COMPLETED
        if self._readers:
            self._on_loop(self._wake)

    def _append(self, event: Event) -> None:
        self._entries.append(event)
        if self._on_full is not None and len(self._entries) >= self._limit:
            self._on_loop(self._on_full)
            self._on_full = None
        if len(self._entries) > 2 * self._limit:
            self._trim(len(self._entries) - self._limit)

    def _trim(self, count: int) -> None:
        if self._written is not None:
            count = min(count, self._written - self._dropped)
        if count > 0:
            self._dropped += count
            del self._entries[:count]

    def _note_step(self, event: Event) -> None:
        name = event.step_name
        if name is None:
            return
        if event.event_type is EventType.STEP_STARTED:
            self._records[name] = StepRecord(name, event.timestamp)
        elif (record := self._records.get(name)) is not None:
            if event.event_type is EventType.STEP_COMPLETED:
                record.status, record.duration = "completed", event.data["duration"]
            elif event.event_type is EventType.STEP_FAILED:
                record.status, record.duration = "failed", event.data["duration"]

    def _on_loop(self, call: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(call)

    def _wake(self) -> None:
        for reader in self._readers:
            reader.set()

    def _send_progress_later(self) -> None:
        def send() -> None:
            with self._lock:
                self._progress_timer = False
                update = (
                    None if self._closed else self._tracker.update(self.job_id, self.attempt, time.time(), force=True)
                )
                if update is not None:
                    self._append(update)
            self._wake()

        self._loop.call_later(0.05, send)

    # ---- readers read

    @property
    def last_seq(self) -> int:
        """The number of the newest entry."""
        return self._dropped + len(self._entries)

    @property
    def closed(self) -> bool:
        """Whether the terminal event is there."""
        return self._closed

    def read(self, after: int = 0, limit: int | None = None) -> list[LogEntry | LogGap]:
        """What follows number ``after``, encoded; a gap stands first if the log was trimmed."""
        found: list[LogEntry | LogGap] = []
        with self._lock:
            if after < self._dropped:
                found.append(LogGap(after + 1, self._dropped, "trimmed"))
                after = self._dropped
            start = after - self._dropped
            stop = len(self._entries) if limit is None else min(len(self._entries), start + limit)
            entries = self._entries[start:stop]
        for index, entry in enumerate(entries):
            body = entry if isinstance(entry, bytes) else self._encode(entry)
            if body is not entry:
                self._keep_encoded(after + 1 + index, body)
            found.append(LogEntry(after + 1 + index, body))
        return found

    def bodies(self, after: int, limit: int | None = None) -> list[bytes]:
        """The encoded bodies that follow number ``after``, none left out. Raises LookupError if some are gone."""
        entries = self.read(after, limit)
        if entries and isinstance(entries[0], LogGap):
            raise LookupError(f"entries {entries[0].first} to {entries[0].last} of job {self.job_id} are gone")
        return [entry.body for entry in entries if isinstance(entry, LogEntry)]

    def written(self, through: int, *, forget: bool = False) -> None:
        """Entries up to this number are safe elsewhere. ``forget``: and nobody follows here, so let them go."""
        with self._lock:
            self._written = through
            if forget:
                self._trim(through - self._dropped)

    @contextlib.asynccontextmanager
    async def follow(self, *, after: int = 0) -> AsyncGenerator[AsyncIterator[LogEntry | LogGap]]:
        """All that follows ``after``, as it happens; ends after the terminal event."""
        wake = self.subscribe()
        try:
            yield self._follow(after, wake)
        finally:
            self._readers.discard(wake)

    def subscribe(self) -> asyncio.Event:
        """An event that is set whenever there is more to read; give it back with :meth:`unsubscribe`."""
        wake = asyncio.Event()
        self._readers.add(wake)
        return wake

    def unsubscribe(self, wake: asyncio.Event) -> None:
        """Stop setting ``wake``."""
        self._readers.discard(wake)

    async def _follow(self, after: int, wake: asyncio.Event) -> AsyncIterator[LogEntry | LogGap]:
        while True:
            wake.clear()
            closed = self._closed
            for entry in self.read(after):
                after = entry.seq if isinstance(entry, LogEntry) else entry.last
                yield entry
            if closed:
                return
            await wake.wait()

    def progress(self) -> Progress:
        """The run's progress."""
        with self._lock:
            return self._tracker.progress(ended=self._ended)

    def steps(self) -> list[StepReport]:
        """The run's steps so far; empty when metadata is not captured."""
        if not self._capture.metadata:
            return []
        with self._lock:
            records = list(self._records.values())
        return [step_report(record, self.attempt) for record in records[-STEPS_SHOWN:]]

    def view(self) -> RunView:
        """Progress and steps as the job's record shows them."""
        with self._lock:
            records = list(self._records.values())
        return RunView(
            progress=self.progress().model_dump_json().encode(),
            steps=steps_json(records, self.attempt) if self._capture.metadata else None,
        )

    def _encode(self, event: Event) -> bytes:
        if not self._capture.metadata and event.event_type in (EventType.STEP_COMPLETED, EventType.STEP_FAILED):
            event = replace(event, data={key: value for key, value in event.data.items() if key != "duration"})
        return encode_body(event)

    def _keep_encoded(self, seq: int, body: bytes) -> None:
        with self._lock:
            index = seq - self._dropped - 1
            if 0 <= index < len(self._entries):
                self._entries[index] = body


def step_fields(record: StepRecord, attempt: int) -> dict[str, Any]:
    """A step's record as the members of a :class:`~pipeserve.jobs.StepReport`."""
    return {
        "name": record.name,
        "status": record.status,
        "attempt": attempt,
        "started_at": datetime.fromtimestamp(record.started_at, UTC),
        "duration": record.duration,
        "cached": record.cached,
    }


def step_report(record: StepRecord, attempt: int) -> StepReport:
    """A step's record as the wire shows it."""
    return StepReport.model_construct(**step_fields(record, attempt))


def steps_json(records: Sequence[StepRecord], attempt: int) -> bytes:
    """The newest steps as JSON. A dynamic run may make very many: all are in the log, and these in the record."""
    return orjson.dumps([step_fields(record, attempt) for record in records[-STEPS_SHOWN:]], option=orjson.OPT_UTC_Z)


def final_view(result: RunResult, log: RunLog, capture: Capture) -> RunView:
    """The view of a run that has ended: its steps as the run itself counted them."""
    return RunView(
        progress=log.progress().model_dump_json().encode(),
        steps=steps_json(result.steps, log.attempt) if capture.metadata else None,
    )


def terminal_event(job_id: str, attempt: int, result: RunResult) -> Event:
    """The one event that ends the log of a run with this result."""
    data: dict[str, Any] = {"execution_time": result.execution_time}
    if result.status is JobStatus.COMPLETED:
        data["outputs"] = orjson.Fragment(result.outputs_json or b"{}")
    error: Problem | None = result.error
    return Event(
        TERMINAL_EVENT_OF[result.status],
        job_id,
        attempt,
        level="error" if result.status in (JobStatus.FAILED, JobStatus.TIMED_OUT) else None,
        message=None if error is None else error.detail,
        data=data,
        error=error,
    )
