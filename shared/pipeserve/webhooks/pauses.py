"""How long to wait before a receiver is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable

Pauses = Callable[[int, float | None], float]
"""Seconds, from the number of failed tries at an event, and from how many the receiver has asked for."""

PAUSES = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0)
"""Seconds after the first failed try, the second, …; the last for all that follow."""

LONGEST_ASKED = 3600.0
"""Seconds for which a receiver may ask to wait."""

_SPREAD = 0.2


def pause_after(failures: int, retry_after: float | None) -> float:
    """The pause after so many failed tries, up to a fifth shorter or longer by chance, or as long as was asked for.

    The chance keeps the jobs that failed together from coming back together.
    """
    planned = PAUSES[min(failures, len(PAUSES)) - 1] * random.uniform(1 - _SPREAD, 1 + _SPREAD)
    return planned if retry_after is None else max(planned, min(retry_after, LONGEST_ASKED))
