"""``Limits`` in this process: the twin of the store's, and what counts while that is away."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pipeserve.runtime.ports import Budget, Spent, Verdict

_MOST = 10_000


class MemoryLimits:
    """Counts for one process. ``clock``: Unix time in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._full_at: dict[tuple[str, str], float] = {}

    async def spend(self, caller: str, budgets: Sequence[Budget], amount: int = 1) -> Verdict:
        """Take ``amount`` of each budget, or of none."""
        now = self._clock()
        self._forget(now)
        places = [(caller, budget.name) for budget in budgets]
        before = [max(self._full_at.get(place, 0.0), now) for place in places]
        steps = [amount * budget.seconds / budget.size for budget in budgets]
        after = [max(moment + step, now) for moment, step in zip(before, steps, strict=True)]
        over = [moment - now - budget.seconds for moment, budget in zip(after, budgets, strict=True)]
        wait = max(over, default=0.0)
        if amount > 0 and wait > 1e-6:
            return Verdict(False, wait, _spent(budgets, before, now))
        self._full_at.update(zip(places, after, strict=True))
        return Verdict(True, 0.0, _spent(budgets, after, now))

    def _forget(self, now: float) -> None:
        if len(self._full_at) >= _MOST:
            self._full_at = {place: moment for place, moment in self._full_at.items() if moment > now}


def _spent(budgets: Sequence[Budget], full_at: Sequence[float], now: float) -> tuple[Spent, ...]:
    return tuple(
        Spent(budget, max(math.floor((1 - (moment - now) / budget.seconds) * budget.size + 1e-6), 0), moment - now)
        for budget, moment in zip(budgets, full_at, strict=True)
    )
