"""Sets right, now and then, what no crash should have left in the ledger: the backstop behind all other recoveries.

Every process of a deployment asks; the ledger lets one of them do it. What it finds is a defect, in the service or in
its store, so it is logged as a warning with its figures.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from typing import NoReturn, Self

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.ports import JobLedger
from pipeserve.runtime.tasks import end_tasks

logger = logging.getLogger(__name__)


class Upkeep:
    """Reconciles ``ledger`` in the background every ``interval`` seconds, while it is entered.

    ``owner`` is this process's token in the store.
    """

    def __init__(self, ledger: JobLedger, owner: str, *, interval: float = 30.0) -> None:
        if interval <= 0:
            raise ValueError(f"Upkeep: need interval > 0, not {interval}")
        self._ledger = ledger
        self._owner = owner
        self._interval = interval
        self._task: asyncio.Task[NoReturn] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep_up(), name="upkeep")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            await end_tasks([self._task])

    async def _keep_up(self) -> NoReturn:
        while True:
            try:
                await self._reconcile()
            except StoreUnavailableError as error:
                logger.debug("no upkeep while the store is away", extra={"error": str(error)})
            except Exception:  # a defect here must not end what is meant to mend others
                logger.exception("the ledger could not be reconciled")
            await asyncio.sleep(self._interval)

    async def _reconcile(self) -> None:
        found = await self._ledger.reconcile(self._owner)
        figures = {} if found is None else asdict(found)
        if any(figures.values()):
            logger.warning("the ledger was set right", extra=figures)
