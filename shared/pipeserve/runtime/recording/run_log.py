"""One run's own log in this process: what its steps report, filtered by capture, coalesced and numbered.

The run appends from any thread. The recorder reads it to write the job's log in the store, and a stream of the same
process follows it directly. Events are encoded when somebody first reads them, not while the run is waiting;
those that carry a value at once, since nothing else tells their size.

While nobody takes what is to be recorded, a log holds no more than its share of the process's
:class:`~pipeserve.runtime.recording.event_budget.EventBudget`. Beyond that, what steps say is dropped before it is
numbered, and a ``log`` event says how much is missing. What happened to the run itself is always there. A step in a
thread that only outruns a store that is well loses nothing: it waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeserve.events import Event, EventType
from pipeserve.jobs import Progress, StepReport
from pipeserve.runtime.ports import Attachment, LogEntry, LogGap, RunView
from pipeserve.runtime.recording.event_budget import ENTRY_BYTES, EventBudget, EventShare
from pipeserve.runtime.recording.progress import ProgressTracker
from pipeserve.runtime.recording.run_view import STEPS_SHOWN, event_body, step_report, steps_json
from pipeserve.runtime.run import StepRecord
from pipeserve.sdk.capture import Capture

_PATIENCE = 0.25  # seconds for which a step in a thread waits for a sign of life from the store
_MAY_BE_DROPPED = (EventType.LOG, EventType.OUTPUT, EventType.METADATA, EventType.VISUALIZATION)


@dataclass(frozen=True, slots=True)
class Home:
    """A loop and its thread."""

    loop: asyncio.AbstractEventLoop
    thread: int

    @classmethod
    def here(cls) -> Home:
        """Of the code that calls this."""
        return cls(asyncio.get_running_loop(), threading.get_ident())


class RunLog:
    """An :class:`~pipeserve.runtime.run.EventSink` that numbers and keeps."""

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
        budget: EventBudget | None = None,
        home: Home | None = None,
    ) -> None:
        """``recorded``: a recorder writes the log elsewhere, and nothing goes before it has (:meth:`written`).

        ``home``: the loop that its readers run on; None: this one.
        ``budget``: what unwritten entries may take; None: any amount. A log that is not recorded lets its oldest
        entries go for it, and drops nothing. ``on_full`` is called on the loop, once, when there are ``limit`` entries
        or a good part of what the budget allows.
        """
        self.job_id = job_id
        self.attempt = attempt
        self._capture = capture
        self._limit = limit
        home = home or Home.here()
        self._loop = home.loop
        self._loop_thread = home.thread
        self._lock = threading.Lock()
        self._room: threading.Condition | None = None  # made when somebody waits for some
        self._entries: list[Event | bytes] = []
        self._dropped = 0  # entries before the first kept one
        self._written = 0 if recorded else None  # through which number entries may go; None: any
        self._on_full = on_full
        self._share = None if budget is None else EventShare(budget)
        self._missing = 0  # events dropped since the log last said so
        self._tracker = ProgressTracker(total_steps)
        self._records: dict[str, StepRecord] = {}
        self._view_changes = 0
        self._attachments: list[Attachment] = []
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
        may_be_dropped = event_type in _MAY_BE_DROPPED
        entry = event_body(self._capture, event) if may_be_dropped and event_type is not EventType.LOG else event
        with self._lock:
            if self._closed or ((may_be_dropped or self._missing) and not self._make_room(entry, may_be_dropped)):
                return
            self._tracker.note(event)
            if not may_be_dropped:
                self._view_changes += 1
            if event_type is not EventType.PROGRESS_UPDATE:
                self._note_step(event)
                self._append(entry)
            # Where events are being dropped, progress is not told either: the newest follows when there is room.
            update = None if self._missing else self._tracker.update(self.job_id, self.attempt, event.timestamp)
            if update is not None:
                self._append(update)
            elif event_type is EventType.PROGRESS_UPDATE and not self._progress_timer:
                # Too soon after the last: the newest value follows, even if the step then falls silent.
                self._progress_timer = True
                self._on_loop(self._send_progress_later)
        if self._readers:
            self._on_loop(self._wake)

    def attach(self, attachment: Attachment) -> None:
        """Keep what an event, which comes next, tells of; from any thread."""
        with self._lock:
            if self._closed:
                return
            self._attachments.append(attachment)
            if self._share is not None:
                self._share.hold(len(attachment.data))

    @property
    def attachments(self) -> Sequence[Attachment]:
        """What was attached so far."""
        return tuple(self._attachments)

    def close(self, terminal: Event) -> None:
        """End the log with its terminal event. What an abandoned thread still reports is dropped."""
        with self._lock:
            if self._closed:
                return
            self._tell_missing()
            if (update := self._tracker.update(self.job_id, self.attempt, terminal.timestamp, force=True)) is not None:
                self._append(update)
            self._append(terminal)
            self._closed = True
            self._ended = terminal.event_type is EventType.PIPELINE_COMPLETED
            if self._share is not None:
                self._share.settle()
            self._end_waits()
        if self._readers:
            self._on_loop(self._wake)

    def hold(self, size: int) -> None:
        """Count ``size`` bytes that are kept along with the log, until :meth:`release`."""
        if self._share is not None:
            with self._lock:
                self._share.hold(size)

    def release(self) -> None:
        """Nobody is going to write this log elsewhere any more: it takes no event, and counts for nothing."""
        with self._lock:
            self._closed = True
            if self._share is not None:
                self._share.release()
            self._end_waits()

    @property
    def held(self) -> int:
        """About how many bytes of memory wait here to be written; 0 without a budget."""
        return 0 if self._share is None else self._share.held

    def _make_room(self, entry: Event | bytes, may_be_dropped: bool) -> bool:
        """Whether ``entry`` is to be taken."""
        share = self._share
        if share is None:
            return True
        size = _size_of(entry)
        # Not for what is logged: who logs may hold a lock that other threads wait for.
        may_wait = isinstance(entry, bytes) and not self._missing and threading.get_ident() != self._loop_thread
        if share.fits(size):
            self._tell_missing()
        elif self._written is None:
            self._trim(max(1, len(self._entries) // 2))
        elif may_be_dropped and not (may_wait and self._wait_for_room(share, size)):
            if not self._closed:
                self._missing += 1
                share.count_dropped()
            return False
        return True

    def _wait_for_room(self, share: EventShare, size: int) -> bool:
        """Let the recorder catch up, as long as it does; whether there is room now."""
        self._room = self._room or threading.Condition(self._lock)
        while self._room.wait(_PATIENCE):
            if self._closed or share.fits(size):
                break
        else:
            return False
        return not self._closed

    def _end_waits(self) -> None:
        if self._room is not None:
            self._room.notify_all()

    def _tell_missing(self) -> None:
        if self._missing:
            words = f"{self._missing} events were dropped here: the job store did not take them in time"
            data = {"logger": "pipeserve", "dropped": self._missing}
            self._missing = 0
            self._append(Event(EventType.LOG, self.job_id, self.attempt, level="warning", message=words, data=data))

    def _append(self, entry: Event | bytes) -> None:
        self._entries.append(entry)
        filled = len(self._entries) >= self._limit
        if self._share is not None:
            self._share.add(_size_of(entry))
            filled = filled or self._share.held >= self._share.limit // 4
        if filled and self._on_full is not None:
            self._on_loop(self._on_full)
            self._on_full = None
        if len(self._entries) > 2 * self._limit:
            self._trim(len(self._entries) - self._limit)

    def _trim(self, count: int) -> None:
        if self._written is not None:
            count = min(count, self._written - self._dropped)
        elif self._share is not None:
            self._share.remove(count)
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
                record.cached, record.cache = event.data["cached"], event.data.get("cache")
            elif event.event_type is EventType.STEP_FAILED:
                record.status, record.duration = "failed", event.data["duration"]
            elif event.event_type is EventType.STEP_RETRYING:
                record.calls = event.data["call"] + 1

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
                silent = self._closed or self._missing
                update = None if silent else self._tracker.update(self.job_id, self.attempt, time.time(), force=True)
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
            body = entry if isinstance(entry, bytes) else event_body(self._capture, entry)
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
            if self._share is not None and self._written is not None:
                self._share.remove(through - self._written)
                self._end_waits()
                if self._missing and self._share.fits(0) and not self._closed:
                    self._tell_missing()
                    self._on_loop(self._wake)
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

    @property
    def view_changes(self) -> int:
        """How often what :meth:`view` shows may have changed (what is yielded changes nothing); read it before."""
        return self._view_changes

    def view(self) -> RunView:
        """Progress and steps as the job's record shows them."""
        with self._lock:
            records = list(self._records.values())
        return RunView(
            progress=self.progress().model_dump_json().encode(),
            steps=steps_json(records, self.attempt) if self._capture.metadata else None,
        )

    def _keep_encoded(self, seq: int, body: bytes) -> None:
        with self._lock:
            index = seq - self._dropped - 1
            if 0 <= index < len(self._entries):
                self._entries[index] = body


def _size_of(entry: Event | bytes) -> int:
    """About how many bytes of memory it takes, encoded or not."""
    if isinstance(entry, bytes):
        return len(entry) + 64
    return ENTRY_BYTES if entry.message is None else ENTRY_BYTES + len(entry.message)
