"""Waiting for work without asking for it over and over."""

from __future__ import annotations

from typing import Self

from pipeserve.store.connection import Connection, connect, outages
from pipeserve.store.keys import WAKE_TTL, Keys

LONGEST_WAIT = 5.0
"""Seconds that one wait may block. The connection's read timeout is longer."""


class WakeUps:
    """A worker's place in the line of idle workers. ``async with`` owns a connection: waiting blocks it.

    Each token wakes exactly one waiter, the one that has waited longest. Tokens are hints: one may come for a job
    that is taken, or be missing for one that waits, so look at the queue now and then too.
    """

    def __init__(self, url: str, keys: Keys) -> None:
        self._keys = keys
        client = connect(url, queue_name=keys.queue, read_timeout=2 * LONGEST_WAIT, pool_size=1)
        self._connection = Connection(url, client)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.aclose()

    async def wait(self, seconds: float) -> bool:
        """Until there may be work (True), or ``seconds`` (at most 5) have passed. Raises StoreUnavailableError."""
        token = await self._connection.call("BLPOP", self._keys.wake, min(seconds, LONGEST_WAIT))
        return token is not None

    async def give_back(self) -> None:
        """Pass a token on to the next waiter, as the next to be taken. Raises StoreUnavailableError."""
        with outages(self._connection.url):
            async with self._connection.client.pipeline(transaction=True) as pipe:
                pipe.rpush(self._keys.wake, b"1")
                pipe.expire(self._keys.wake, WAKE_TTL)
                await pipe.execute()
