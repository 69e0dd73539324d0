"""What an operator asks of the store: figures, and whether it is fit to keep jobs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

import orjson

from pipeserve.errors import StoreUnavailableError
from pipeserve.events import rfc3339
from pipeserve.runtime.ports import CacheGauges, ServiceFigures
from pipeserve.store.address import masked
from pipeserve.store.fitness import faults, warnings
from pipeserve.store.keys import FIGURES_TTL
from pipeserve.store.scripts.epoch import emptied_at
from pipeserve.store.scripts.figures import figures, tell_cache
from pipeserve.store.scripts.prelude import Scope

logger = logging.getLogger(__name__)


class RedisOperations:
    """``Operations`` on Redis."""

    def __init__(self, scope: Scope, *, embedded: bool) -> None:
        self._scope = scope
        self._embedded = embedded

    async def figures(self) -> ServiceFigures:
        """The whole service's figures. Raises StoreUnavailableError."""
        return await figures(self._scope)

    async def tell_cache(self, owner: str, gauges: CacheGauges) -> None:
        """How full the step cache of process ``owner`` is; forgotten after 30 seconds. Raises StoreUnavailableError."""
        await tell_cache(self._scope, owner, gauges)

    async def check(self) -> list[str]:
        """What makes this store unfit to keep jobs, in sentences. Raises StoreUnavailableError."""
        return await faults(self._scope.connection)

    async def condition(self) -> Mapping[str, object]:
        """``warnings`` in sentences, and ``emptied_at``: when it was noticed that all jobs were gone, if ever.

        Raises StoreUnavailableError.
        """
        marker: bytes | None = await self._scope.connection.call("GET", self._scope.keys.epoch)
        moment = emptied_at(marker)
        return {
            "warnings": await warnings(self._scope.connection),
            "emptied_at": None if moment is None else rfc3339(moment),
        }

    async def log_faults(self) -> None:
        """Tell the log what makes this store unfit, when a process starts. A store that is away is not judged."""
        with suppress(StoreUnavailableError):
            for fault in await self.check():
                logger.error("the job store is not fit to keep jobs: %s", fault)

    async def tell_drill(self, report: bytes) -> None:
        """Keep the report of a drill in place of the one before. Raises StoreUnavailableError."""
        await self._scope.connection.call("SET", self._scope.keys.drill, report, "EX", FIGURES_TTL)

    async def last_drill(self) -> Mapping[str, object] | None:
        """The report of the last drill. Raises StoreUnavailableError."""
        report: bytes | None = await self._scope.connection.call("GET", self._scope.keys.drill)
        return None if report is None else orjson.loads(report)

    def describe(self) -> Mapping[str, object]:
        """The store's kind and address, without secrets."""
        return {"kind": "embedded" if self._embedded else "redis", "url": masked(self._scope.connection.url)}
