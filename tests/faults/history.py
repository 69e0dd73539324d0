"""What clients saw, what the store says and what steps did; and whether these three can all be true.

A history is only recorded here, never judged while it is made: whatever dies meanwhile, the rules are applied
afterwards to what is left. Each rule is a function over one job (or over all), and yields what it finds broken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

from pipeserve.events import TERMINAL_EVENTS, EventType
from pipeserve.jobs import TERMINAL_EVENT_OF, JobStatus


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that was answered 202."""

    job_id: str
    request: str
    """What the client calls this request (its idempotency key): one request is one job, however often it is sent."""
    at: float
    """Unix time in seconds at which the answer was read."""
    sent_at: float = 0.0
    """Unix time in seconds at which it was sent first."""
    outputs: Mapping[str, Any] | None = None
    """What the job's parameters demand; None: it is not known."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """A cancel that a client asked for. One without an answer may have been carried out."""

    job_id: str
    asked_at: float
    answer: str | None = None
    """The state that a 202 told (``canceling`` or ``canceled``); None: refused, or no answer came."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look at a job: the state that some API process answered."""

    job_id: str
    status: str
    at: float


@dataclass(frozen=True, slots=True)
class Effect:
    """A line that a step left outside: it began or ended."""

    job_id: str
    attempt: int
    pid: int
    what: str
    """``begin`` or ``end``; an end is left whatever ends the step, unless its process dies."""
    at: float


@dataclass(slots=True)
class History:
    """All that is known of the jobs of one load."""

    accepted: list[Accepted] = field(default_factory=list[Accepted])
    cancels: list[Cancel] = field(default_factory=list[Cancel])
    sightings: list[Sighting] = field(default_factory=list[Sighting])
    effects: list[Effect] = field(default_factory=list[Effect])
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """What ``GET /jobs/{id}`` answers in the end, by id; a job that is not there is missing."""
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])
    """What ``GET /jobs/{id}/events`` answers in the end, all pages."""
    listed: dict[str, str] = field(default_factory=dict[str, str])
    """Every job of this load that the store lists, with its request."""
    frozen: bool = False
    """Whether a process was stopped for longer than its lease: then its steps may outlive their attempts."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a job broke."""

    rule: str
    job_id: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: job {self.job_id}: {self.detail}"


def check(history: History) -> list[Violation]:
    """All violations; empty: the promises were kept."""
    effects: dict[str, list[Effect]] = defaultdict(list)
    for effect in history.effects:
        effects[effect.job_id].append(effect)
    cancels = {cancel.job_id: cancel for cancel in history.cancels}
    found = [*_lost(history), *_doubled(history), *_foreign(history), *_changed(history)]
    for accepted in {accepted.job_id: accepted for accepted in history.accepted}.values():
        job = history.jobs.get(accepted.job_id)
        if job is None:
            continue
        events = history.events.get(accepted.job_id, [])
        found += _one_end(job, events)
        found += _numbers(job, events)
        found += _attempts(job, events)
        found += _result(job, events, accepted)
        found += _why(job, events, accepted, cancels.get(accepted.job_id))
        found += _work(job, effects[accepted.job_id], frozen=history.frozen)
    return found


def _lost(history: History) -> Iterator[Violation]:
    """Every job that was answered 202 is there, and has ended."""
    for job_id in dict.fromkeys(accepted.job_id for accepted in history.accepted):
        job = history.jobs.get(job_id)
        if job is None:
            yield Violation("lost", job_id, "it was accepted and is not there")
        elif not JobStatus(job["status"]).terminal:
            yield Violation("lost", job_id, f"it has not ended: {job['status']}")


def _doubled(history: History) -> Iterator[Violation]:
    """One request is one job, and one job is one request's."""
    job_of: dict[str, str] = {}
    request_of: dict[str, str] = {}
    pairs = [(accepted.job_id, accepted.request) for accepted in history.accepted]
    for job_id, request in pairs + list(history.listed.items()):
        if job_of.setdefault(request, job_id) != job_id:
            yield Violation("doubled", job_id, f"request {request} is job {job_of[request]} too")
        if request_of.setdefault(job_id, request) != request:
            yield Violation("doubled", job_id, f"requests {request_of[job_id]} and {request} are both this job")


def _foreign(history: History) -> Iterator[Violation]:
    """Nothing ran that nobody asked for."""
    known = {accepted.job_id for accepted in history.accepted} | history.listed.keys()
    for job_id in {effect.job_id for effect in history.effects} - known:
        yield Violation("foreign", job_id, "its step ran, and nobody asked for it")


def _changed(history: History) -> Iterator[Violation]:
    """A terminal state never changes between two looks; the last look is at the record itself."""
    looks: dict[str, list[Sighting]] = defaultdict(list)
    for sighting in history.sightings:
        looks[sighting.job_id].append(sighting)
    for job_id, seen in looks.items():
        ends = [sighting.status for sighting in sorted(seen, key=lambda look: look.at)]
        if job_id in history.jobs:
            ends.append(history.jobs[job_id]["status"])
        for before, after in pairwise(ends):
            if JobStatus(before).terminal and after != before:
                yield Violation("changed", job_id, f"{before} became {after}")


def _one_end(job: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Iterator[Violation]:
    """Exactly one terminal event, the last, and the one of the job's state."""
    if not JobStatus(job["status"]).terminal:
        return
    types = [event["event_type"] for event in events]
    ends = [event_type for event_type in types if event_type in TERMINAL_EVENTS]
    wanted = TERMINAL_EVENT_OF[JobStatus(job["status"])].value
    if len(ends) != 1:
        yield Violation("one end", job["job_id"], f"terminal events: {ends}")
    elif types[-1] not in TERMINAL_EVENTS:
        yield Violation("after the end", job["job_id"], f"{types[types.index(ends[0]) + 1 :]} after {ends[0]}")
    elif ends != [wanted]:
        yield Violation("one end", job["job_id"], f"it is {job['status']}, and its log ends with {ends[0]}")


def _numbers(job: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Iterator[Violation]:
    """``seq`` is 1, 2, 3, … to the record's ``last_seq``."""
    numbers = [event["seq"] for event in events]
    if numbers != list(range(1, len(numbers) + 1)):
        yield Violation("holes", job["job_id"], f"numbers of events: {numbers}")
    elif job["last_seq"] != len(numbers):
        yield Violation("holes", job["job_id"], f"the record says {job['last_seq']}, the log has {len(numbers)}")


_OF_THE_LEDGER = TERMINAL_EVENTS | {EventType.JOB_QUEUED, EventType.CANCELLATION_REQUESTED, EventType.ATTEMPT_LOST}
"""What is written without an attempt that runs, so that it may follow an attempt's loss under its number."""


def _attempts(job: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Iterator[Violation]:
    """Attempts follow on one another: each starts once, and writes nothing once it is lost or another has started."""
    newest, lost = 0, 0
    started: set[int] = set()
    for event in events:
        attempt, event_type = event["attempt"], event["event_type"]
        where = f"event {event['seq']} ({event_type}) of attempt {attempt}"
        if attempt < newest:
            yield Violation("stale", job["job_id"], f"{where} after attempt {newest} had written")
        newest = max(newest, attempt)
        if attempt <= lost and event_type not in _OF_THE_LEDGER:
            yield Violation("stale", job["job_id"], f"{where} after this attempt was lost")
        if event_type == EventType.ATTEMPT_LOST:
            if attempt <= lost:
                yield Violation("stale", job["job_id"], f"{where}, which was lost before")
            lost = max(lost, attempt)
        elif event_type == EventType.PIPELINE_STARTED:
            if attempt in started:
                yield Violation("stale", job["job_id"], f"{where}, which had started before")
            started.add(attempt)
    if newest > job["attempt"]:
        yield Violation("stale", job["job_id"], f"the record says attempt {job['attempt']}, the log {newest}")


def _result(job: Mapping[str, Any], events: Sequence[Mapping[str, Any]], accepted: Accepted) -> Iterator[Violation]:
    """A completed job's outputs are what its parameters demand, in the record and in its last event."""
    if job["status"] != JobStatus.COMPLETED:
        if job["outputs"] is not None:
            yield Violation("result", job["job_id"], f"it is {job['status']} and has outputs")
        return
    if accepted.outputs is None:
        return
    if job["outputs"] != accepted.outputs:
        yield Violation("result", job["job_id"], f"{job['outputs']} instead of {dict(accepted.outputs)}")
    told = [event["data"].get("outputs") for event in events if event["event_type"] == EventType.PIPELINE_COMPLETED]
    if any(outputs != accepted.outputs for outputs in told):
        yield Violation("result", job["job_id"], f"its last event tells {told} instead of {dict(accepted.outputs)}")


def _why(
    job: Mapping[str, Any], events: Sequence[Mapping[str, Any]], accepted: Accepted, cancel: Cancel | None
) -> Iterator[Violation]:
    """A cancel that was accepted is carried out; and a sound job ends otherwise than completed for a reason only."""
    status = JobStatus(job["status"])
    if cancel is not None and cancel.answer is not None and status.terminal and status is not JobStatus.CANCELED:
        yield Violation("cancel", job["job_id"], f"its cancel was accepted ({cancel.answer}), and it is {status}")
    if status is JobStatus.CANCELED and cancel is None:
        yield Violation("cancel", job["job_id"], "it is canceled, and nobody asked for that")
    if accepted.outputs is None or not status.terminal or status in (JobStatus.COMPLETED, JobStatus.CANCELED):
        return
    code = (job["error"] or {}).get("code")
    lost = [event for event in events if event["event_type"] == EventType.ATTEMPT_LOST]
    crashes = sum(event["data"].get("reason") != "drained" for event in lost)
    if status is not JobStatus.FAILED or code != "worker_lost" or crashes != job["max_attempts"]:
        detail = f"it is {status} ({code}) after {crashes} lost attempts of {job['max_attempts']}"
        yield Violation("failed", job["job_id"], detail)


def _work(job: Mapping[str, Any], effects: Sequence[Effect], *, frozen: bool) -> Iterator[Violation]:
    """What steps did outside agrees with the record: each attempt runs once, and a canceled job works no more."""
    begun = [effect.attempt for effect in effects if effect.what == "begin"]
    for attempt in sorted({attempt for attempt in begun if begun.count(attempt) > 1}):
        yield Violation("work", job["job_id"], f"attempt {attempt} ran {begun.count(attempt)} times")
    if begun and max(begun) > job["attempt"]:
        yield Violation("work", job["job_id"], f"attempt {max(begun)} ran, the record says {job['attempt']}")
    if job["status"] == JobStatus.CANCELED and not frozen:
        ended = datetime.fromisoformat(job["completed_at"]).timestamp()
        if late := [effect for effect in effects if effect.at > ended]:
            seconds = max(effect.at for effect in late) - ended
            yield Violation("work", job["job_id"], f"it worked for {seconds:.3f} s after it was canceled")


def by_rule(violations: Iterable[Violation]) -> dict[str, int]:
    """How many of each rule."""
    counts: dict[str, int] = defaultdict(int)
    for violation in violations:
        counts[violation.rule] += 1
    return dict(counts)
