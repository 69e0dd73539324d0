"""``Retry``: how often, and after which pauses, a step is tried again."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import cast

from pipeserve.errors import DefinitionError, InvocationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A step that raises is called again, within the deadline of its run.

    - ``attempts``: calls in all, the first included.
    - ``backoff``: seconds before the second call; doubled for each further one, up to ``max_backoff``.
    - ``jitter``: the part of each pause, 0 to 1, that chance may take away, so that callers don't come back in step.
    - ``on``: the exceptions that are worth another call. An InvocationError answers the caller and never is.
    """

    attempts: int = 3
    backoff: float = 0.5
    jitter: float = 0.5
    on: tuple[type[Exception], ...] | type[Exception] = (Exception,)
    max_backoff: float = 60.0

    def __post_init__(self) -> None:
        attempts, on = cast(object, self.attempts), cast(object, self.on)
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
            raise DefinitionError(f"Retry(attempts=…) must be a whole number from 1, not {attempts!r}")
        for name in ("backoff", "max_backoff"):
            value: object = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise DefinitionError(f"Retry({name}=…) must be 0 or more seconds, not {value!r}")
        jitter = cast(object, self.jitter)
        if isinstance(jitter, bool) or not isinstance(jitter, (int, float)) or not 0 <= jitter <= 1:
            raise DefinitionError(f"Retry(jitter=…) must be between 0 and 1, not {jitter!r}")
        if isinstance(on, type):
            on = (on,)
            object.__setattr__(self, "on", on)
        kinds = cast(tuple[object, ...], on) if isinstance(on, tuple) else (on,)
        if not kinds or not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
            raise DefinitionError(f"Retry(on=…) must be an exception class or a tuple of them, not {on!r}")

    def wants(self, error: BaseException, attempt: int) -> bool:
        """Whether the call numbered ``attempt`` (from 1), which raised ``error``, is followed by another."""
        return attempt < self.attempts and isinstance(error, self.on) and not isinstance(error, InvocationError)

    def longest(self, timeout: float) -> float:
        """Seconds that all calls and pauses can take, if one call may take ``timeout``."""
        pauses = sum(min(self.backoff * 2 ** min(n, 62), self.max_backoff) for n in range(self.attempts - 1))
        return self.attempts * timeout + pauses

    def pause(self, attempt: int) -> float:
        """Seconds between the call numbered ``attempt`` and the next."""
        whole = min(self.backoff * 2 ** min(attempt - 1, 62), self.max_backoff)
        return whole * (1 - self.jitter * random.random())
