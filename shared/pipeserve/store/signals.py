"""Telling the owners of running jobs which to stop, over the hub's connection."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from pipeserve.errors import StoreUnavailableError
from pipeserve.jobs import JobStatus
from pipeserve.store.connection import Connection
from pipeserve.store.event_log import RETRY_PAUSE
from pipeserve.store.hub import Hub
from pipeserve.store.keys import Keys
from pipeserve.store.subscription import Subscription


class RedisCancelSignals:
    """``CancelSignals`` on Redis.

    At the start and after each reconnect it names every job that is being canceled, so a signal that was published
    meanwhile is late, not lost. An id may therefore come more than once.
    """

    def __init__(self, connection: Connection, keys: Keys, hub: Hub) -> None:
        self._connection = connection
        self._keys = keys
        self._hub = hub

    @asynccontextmanager
    async def listen(self) -> AsyncGenerator[AsyncIterator[str]]:
        """The ids of jobs whose cancel was just accepted."""
        async with (
            self._hub.subscribe(self._keys.cancel_channel) as subscription,
            aclosing(self._ids(subscription)) as ids,
        ):
            yield ids

    async def _ids(self, subscription: Subscription[bytes]) -> AsyncGenerator[str]:
        while not subscription.closed:
            told = subscription.take()
            if subscription.must_read:
                subscription.must_read = False
                try:
                    told += await self._connection.call("ZRANGE", self._keys.status(JobStatus.CANCELING), 0, -1)
                except StoreUnavailableError:
                    subscription.must_read = True
                    await subscription.wait(RETRY_PAUSE)
            for job_id in dict.fromkeys(told):
                yield job_id.decode()
            if not told and not subscription.must_read:
                await subscription.wait()
