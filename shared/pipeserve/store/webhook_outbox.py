"""The webhooks of one deployment that have something to send, on Redis or Valkey."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from pipeserve.runtime.ports import DueWebhook, WebhookProgress
from pipeserve.store.hub import Hub
from pipeserve.store.scripts.outbox import due, settle
from pipeserve.store.scripts.prelude import Scope
from pipeserve.store.subscription import Subscription


class RedisWebhookOutbox:
    """A ``WebhookOutbox`` on Redis. ``news`` needs the hub to run."""

    def __init__(self, scope: Scope, hub: Hub) -> None:
        self._scope = scope
        self._hub = hub

    async def due(self, limit: int, *, hold: float) -> tuple[list[DueWebhook], float | None]:
        """Up to ``limit`` that are due, held for ``hold`` seconds, and in how many seconds the next one is due."""
        return await due(self._scope, limit, hold)

    async def settle(self, job_id: str, progress: WebhookProgress) -> None:
        """Note how far the sender has come, and give the webhook back."""
        await settle(self._scope, job_id, progress)

    @asynccontextmanager
    async def news(self) -> AsyncGenerator[AsyncIterator[None]]:
        """Something may be due, also at the start and after each reconnect."""
        async with (
            self._hub.subscribe(self._scope.keys.webhook_channel) as subscription,
            aclosing(self._told(subscription)) as told,
        ):
            yield told

    async def _told(self, subscription: Subscription[bytes]) -> AsyncGenerator[None]:
        while not subscription.closed:
            told = subscription.take()
            if told or subscription.must_read:
                subscription.must_read = False
                yield
            else:
                await subscription.wait()
