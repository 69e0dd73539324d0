"""Stores that are away: one raises StoreUnavailableError from every call, one hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.memory import MemoryStore


class AwayStore:
    """All ports in one. ``faults`` makes it reachable for ``check`` alone, and unfit."""

    def __init__(self, faults: list[str] | None = None) -> None:
        self.ledger: Any = self
        self.log: Any = self
        self.signals: Any = self
        self.operations: Any = self
        self.attachments: Any = self
        self.cache: Any = self
        self.webhooks: Any = self
        self.limits: Any = self
        self._faults = faults

    async def _away(self, *_: object, **__: object) -> Any:
        raise StoreUnavailableError("The job store at redis://nowhere can't be reached.")

    submit = submit_many = input_of = open = record = get = find = _away
    cancel = claim = append = finish = release = reconcile = read = figures = _away
    add = list = set = tell_cache = condition = due = settle = spend = _away

    @asynccontextmanager
    async def follow(self, job_id: str, *, after: int = 0) -> AsyncIterator[Any]:
        await self._away()
        yield

    @asynccontextmanager
    async def news(self) -> AsyncIterator[Any]:
        await self._away()
        yield

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Any]:
        await self._away()
        yield

    async def check(self) -> list[str]:
        if self._faults is None:
            await self._away()
        return self._faults or []

    def describe(self) -> Mapping[str, object]:
        return {"kind": "redis", "url": "redis://nowhere"}


class HangingLedger:
    """A ledger whose store takes every connection and answers nothing, until ``thawed``."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger
        self.asked = asyncio.Event()
        self.thawed = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def open(self, *arguments: Any) -> Any:
        self.asked.set()
        await self.thawed.wait()
        return await self._ledger.open(*arguments)


class HangingStore:
    """A store in memory, whose ledger hangs when a run is to be opened."""

    def __init__(self) -> None:
        store = MemoryStore()
        self.ledger: Any = HangingLedger(store.ledger)
        self.log: Any = store.log
        self.signals: Any = store.signals
        self.operations: Any = store.operations
        self.attachments: Any = store.attachments
        self.cache: Any = store.cache
        self.webhooks: Any = store.webhooks
        self.limits: Any = store.limits
