"""The jobs that wait: lanes that take turns, and those whose time has not come."""

from __future__ import annotations

from bisect import bisect_left, insort

from pipeserve.runtime.memory.record import Record
from pipeserve.runtime.ports import PRIORITY_SECONDS

_TURN = 2
"""What a taken job adds to its lane's turn: a whole round."""
_NEWCOMER = 1
"""What a new lane's turn is past the lowest: half a round, so that it waits for each other lane at most once, and a
lane of one job at a time can't come first again and again."""


class MemoryQueue:
    """All jobs that wait.

    A job that is due stands in its lane, in the order of its due time less what its priority is worth. A lane has a
    turn while it has jobs; the lane with the lowest turn is next, by name where they are equal.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Record] = {}
        self._scheduled: dict[str, Record] = {}
        self._lanes: dict[str, list[Record]] = {}
        self._turns: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, record: Record, now: float, *, back: bool = False) -> None:
        """Put a job into its lane, or among those that are not due yet. ``back``: it has had its turn before."""
        self._waiting[record.job_id] = record
        if record.due_at > now:
            self._scheduled[record.job_id] = record
        else:
            self._enter(record, back=back)

    def discard(self, record: Record) -> None:
        """Take a job out, wherever it waits."""
        if self._waiting.pop(record.job_id, None) is None:
            return
        if self._scheduled.pop(record.job_id, None) is None:
            self._leave(record)

    def wake(self, now: float) -> None:
        """Those whose time has come enter their lanes."""
        due = [record for record in self._scheduled.values() if record.due_at <= now]
        for record in sorted(due, key=_place):
            del self._scheduled[record.job_id]
            self._enter(record, back=False)

    def take(self) -> Record | None:
        """The job whose turn it is."""
        if not self._turns:
            return None
        lane = min(self._turns, key=lambda name: (self._turns[name], name))
        record = self._lanes[lane][0]
        self._turns[lane] += _TURN
        self.discard(record)
        return record

    def position(self, record: Record) -> int | None:
        """How many jobs go before it if none comes; None: it is not due, or does not wait."""
        if record.job_id not in self._waiting or record.job_id in self._scheduled:
            return None
        lane = record.new.lane
        rank = self._rank(record)
        turn = self._turns[lane] + _TURN * rank
        return rank + sum(self._before(other, turn, lane) for other in self._lanes if other != lane)

    def waiting(self) -> list[Record]:
        """All that wait, due or not."""
        return list(self._waiting.values())

    def first_due(self) -> float | None:
        """The earliest time at which one of them is, or was, due."""
        return min((record.due_at for record in self._waiting.values()), default=None)

    def _enter(self, record: Record, *, back: bool) -> None:
        lane = record.new.lane
        if lane not in self._lanes:
            lowest = min(self._turns.values(), default=None)
            self._turns[lane] = 0 if lowest is None else lowest + (0 if back else _NEWCOMER)
            self._lanes[lane] = []
        insort(self._lanes[lane], record, key=_place)

    def _leave(self, record: Record) -> None:
        lane = record.new.lane
        del self._lanes[lane][self._rank(record)]
        if not self._lanes[lane]:
            del self._lanes[lane], self._turns[lane]

    def _rank(self, record: Record) -> int:
        return bisect_left(self._lanes[record.new.lane], _place(record), key=_place)

    def _before(self, other: str, turn: int, lane: str) -> int:
        """How many jobs of lane ``other`` go before ``lane`` has this turn."""
        turns, rest = divmod(turn - self._turns[other], _TURN)
        return min(len(self._lanes[other]), max(turns + (1 if rest else other < lane), 0))


def _place(record: Record) -> tuple[float, str]:
    return record.due_at - PRIORITY_SECONDS * record.new.priority, record.job_id
