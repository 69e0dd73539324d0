"""What a history says of times: from a kill to the job's next start, and from a cancel to its end."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from tests.faults.history import History

from pipeserve.events import EventType


@dataclass(frozen=True, slots=True)
class Kill:
    """A process that was ended with SIGKILL."""

    pid: int
    at: float
    """Unix time in seconds, taken just before."""
    what: str = "worker"


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of so many seconds. None: there were none."""

    count: int
    p50: float | None
    p95: float | None
    max: float | None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Of these."""
        if not seconds:
            return cls(0, None, None, None)
        found = sorted(seconds)
        cuts = statistics.quantiles(found, n=100, method="inclusive") if len(found) > 1 else found * 99
        return cls(len(found), round(cuts[49], 4), round(cuts[94], 4), round(found[-1], 4))

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def recoveries(history: History, kills: Sequence[Kill]) -> list[float]:
    """Seconds from the kill of a worker process to the next start of each job that ran there.

    Which process ran an attempt is known from what its step left outside; where it left nothing, it was the one killed
    last before the loss was recorded. Attempts that were handed back by a process that stopped are no recoveries.
    """
    by_pid = {kill.pid: kill for kill in kills}
    in_order = sorted((kill for kill in kills if kill.what == "worker"), key=lambda kill: kill.at)
    moments = [kill.at for kill in in_order]
    pids = {(effect.job_id, effect.attempt): effect.pid for effect in history.effects}
    found: list[float] = []
    for job_id, events in history.events.items():
        for at, event in enumerate(events):
            if event["event_type"] != EventType.ATTEMPT_LOST or event["data"].get("reason") == "drained":
                continue
            again = _next_start(events[at:])
            pid = pids.get((job_id, event["attempt"]))
            kill = None if pid is None else by_pid.get(pid)
            before = bisect_right(moments, _time(event))
            if pid is None and before:
                kill = in_order[before - 1]
            if again is not None and kill is not None:
                found.append(again - kill.at)
    return found


def cancels(history: History) -> list[float]:
    """Seconds from a client's request to cancel a running job to its end; without those whose worker was lost."""
    found: list[float] = []
    for cancel in history.cancels:
        events = history.events.get(cancel.job_id, [])
        lost = any(event["event_type"] == EventType.ATTEMPT_LOST for event in events)
        if cancel.answer == "canceling" and not lost and events[-1]["event_type"] == EventType.PIPELINE_CANCELED:
            found.append(_time(events[-1]) - cancel.asked_at)
    return found


def _next_start(events: Sequence[Mapping[str, Any]]) -> float | None:
    return next((_time(event) for event in events if event["event_type"] == EventType.PIPELINE_STARTED), None)


def _time(event: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()
