"""Step results that all processes of a deployment share, on Redis or Valkey."""

from __future__ import annotations

from pipeserve.store.connection import Connection
from pipeserve.store.keys import Keys


class RedisSharedCache:
    """``SharedCache`` on Redis. Keys should be digests: they become part of the names of the store's keys.

    A call takes no longer than the connection's timeouts let it. It may be cancelled before.
    """

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._keys = keys

    async def get(self, key: str) -> tuple[bytes, float] | None:
        """A result and the seconds for which it may still be used, in one round trip. Raises StoreUnavailableError."""
        name = self._keys.cache(key)
        # The time first: if somebody sets the result between the two, it is used for too short a time, never too long.
        milliseconds, value = await self._connection.pipeline([("PTTL", name), ("GET", name)])
        if not isinstance(value, bytes) or not isinstance(milliseconds, int) or milliseconds <= 0:
            return None  # absent, or none of ours
        return value, milliseconds / 1000

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep ``value`` for ``ttl`` seconds. Raises StoreUnavailableError, also where the store is full."""
        await self._connection.call("SET", self._keys.cache(key), value, "PX", max(1, round(ttl * 1000)))
