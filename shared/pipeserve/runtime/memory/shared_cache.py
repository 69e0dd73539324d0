"""Step results in this process, in the place of those that all processes share."""

from __future__ import annotations

from pipeserve.runtime.memory.state import Clock

_FIRST_CLEANUP = 1_000


class MemorySharedCache:
    """``SharedCache`` in this process. ``clock`` gives seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: dict[str, tuple[bytes, float]] = {}
        self._clean_at = _FIRST_CLEANUP

    async def get(self, key: str) -> tuple[bytes, float] | None:
        """A result and the seconds for which it may still be used."""
        value, expires_at = self._entries.get(key, (b"", 0.0))
        remaining = expires_at - self._clock()
        if remaining <= 0:
            self._entries.pop(key, None)
            return None
        return value, remaining

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep ``value`` for ``ttl`` seconds."""
        self._entries[key] = (value, self._clock() + ttl)
        if len(self._entries) >= self._clean_at:  # each time it has doubled, so that an entry costs no more than two
            now = self._clock()
            self._entries = {key: entry for key, entry in self._entries.items() if entry[1] > now}
            self._clean_at = max(_FIRST_CLEANUP, 2 * len(self._entries))
