"""A store as its users see it: one address, its deployments, and for each of these the ports."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

from arq.connections import ArqRedis

from pipeserve.settings import StoreSettings
from pipeserve.store.attachments import RedisAttachments
from pipeserve.store.checkpoints import RedisCheckpoints
from pipeserve.store.connection import Connection, connect
from pipeserve.store.deployments import RedisDeployments
from pipeserve.store.embedded import start_embedded
from pipeserve.store.event_log import RedisEventLog
from pipeserve.store.hub import Hub
from pipeserve.store.keys import Keys
from pipeserve.store.ledger import RedisLedger
from pipeserve.store.limits import RedisLimits
from pipeserve.store.operations import RedisOperations
from pipeserve.store.scripts.prelude import Scope
from pipeserve.store.shared_cache import RedisSharedCache
from pipeserve.store.signals import RedisCancelSignals
from pipeserve.store.webhook_outbox import RedisWebhookOutbox


class DeploymentStore:
    """One deployment's jobs. ``async with`` runs the hub, which ``log.follow`` and ``signals`` need, and closes the
    connections; the rest works without."""

    def __init__(self, url: str, deployment_id: str, settings: StoreSettings, *, embedded: bool) -> None:
        self.keys = Keys(deployment_id)
        self.queue_name = self.keys.queue
        self.redis: ArqRedis = connect(url, queue_name=self.queue_name)
        """For arq's ``Worker``; its commands raise redis-py's errors, not StoreUnavailableError."""
        connection = self._connection = Connection(url, self.redis, strict=settings.durability == "strict")
        scope = Scope(connection, self.keys, settings.event_log_max, settings.result_ttl, settings.lease_seconds)
        self.hub = Hub(connection, self.keys.heartbeat_channel(""))
        self.ledger = RedisLedger(scope, max_queue_size=settings.max_queue_size)
        self.log = RedisEventLog(connection, self.keys, self.hub)
        self.signals = RedisCancelSignals(connection, self.keys, self.hub)
        self.operations = RedisOperations(scope, embedded=embedded)
        self.attachments = RedisAttachments(scope)
        self.checkpoints = RedisCheckpoints(scope)
        self.cache = RedisSharedCache(connection, self.keys)
        self.webhooks = RedisWebhookOutbox(scope, self.hub)
        self.limits = RedisLimits(scope)

    async def __aenter__(self) -> Self:
        await self.hub.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.hub.__aexit__(*exc)
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._connection.aclose()


class Store:
    """One Redis or Valkey that carries many deployments; made by :func:`open_store`."""

    def __init__(self, url: str, settings: StoreSettings, *, embedded: bool) -> None:
        self.url = url
        """``redis://``, ``rediss://`` or ``unix://``: what child processes take as ``PIPESERVE_REDIS_URL``."""
        self.embedded = embedded
        self._settings = settings
        self._connection = Connection(url, connect(url, queue_name="arq:queue", pool_size=4))
        self.registry = RedisDeployments(self._connection)

    def deployment(self, deployment_id: str) -> DeploymentStore:
        """The jobs of one deployment; ``async with`` it, or ``aclose()`` it."""
        return DeploymentStore(self.url, deployment_id, self._settings, embedded=self.embedded)

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._connection.aclose()


@asynccontextmanager
async def open_store(settings: StoreSettings) -> AsyncGenerator[Store]:
    """The store that ``settings`` name: the one at ``redis_url``, or an embedded Valkey under ``data_dir``.

    An external store may be down: calls raise StoreUnavailableError until it is back. An embedded one is started, or
    attached to where another process of this machine has started it. Raises ConfigurationError.
    """
    async with AsyncExitStack() as stack:
        strict = settings.durability == "strict"
        url = settings.redis_url or await stack.enter_async_context(start_embedded(settings.data_dir, strict=strict))
        store = Store(url, settings, embedded=settings.redis_url is None)
        stack.push_async_callback(store.aclose)
        yield store
