"""A store that is away: every call raises StoreUnavailableError."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from pipeserve.errors import StoreUnavailableError


class AwayStore:
    """Ledger, log, signals and operations in one. ``faults`` makes it reachable for ``check`` alone, and unfit."""

    def __init__(self, faults: list[str] | None = None) -> None:
        self.ledger: Any = self
        self.log: Any = self
        self.signals: Any = self
        self.operations: Any = self
        self._faults = faults

    async def _away(self, *_: object, **__: object) -> Any:
        raise StoreUnavailableError("The job store at redis://nowhere can't be reached.")

    submit = open = record = get = find = cancel = claim = append = finish = release = read = figures = _away

    @asynccontextmanager
    async def follow(self, job_id: str, *, after: int = 0) -> AsyncIterator[Any]:
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
