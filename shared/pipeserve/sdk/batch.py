"""``Batch``: calls of concurrent requests gathered into one call of the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from pipeserve.errors import DefinitionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Up to ``max_size`` calls become one call with lists.

    A call waits while others may come: no longer once there are ``max_size``, once no other request is under way, or,
    where no batch of the step is running, once ``max_wait_ms`` milliseconds are over. The step takes a list for each
    parameter and returns a list of as many results, in the same order; a pipeline calls it with single values. A result
    that is an exception fails its own request only.
    """

    max_size: int = 8
    max_wait_ms: float = 5.0

    def __post_init__(self) -> None:
        size, wait = cast(object, self.max_size), cast(object, self.max_wait_ms)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise DefinitionError(f"Batch(max_size=…) must be a whole number from 1, not {size!r}")
        if isinstance(wait, bool) or not isinstance(wait, (int, float)) or not 0 <= wait <= 60_000:
            raise DefinitionError(f"Batch(max_wait_ms=…) must be between 0 and 60000 milliseconds, not {wait!r}")
