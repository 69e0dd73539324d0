"""The stores that the service is tested over."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from pipeserve.runtime.memory import MemoryStore
from pipeserve.settings import StoreSettings
from pipeserve.store import open_store
from pipeserve_api.services import Backend


@pytest.fixture(params=["memory", "valkey"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """One fresh deployment's part of each kind of store. Nobody renews leases here, so they are long."""
    if request.param == "memory":
        yield MemoryStore(lease_seconds=60)
        return
    settings = StoreSettings.from_environment(redis_url=request.getfixturevalue("store_url"), lease_seconds=60)
    async with open_store(settings) as store, store.deployment(str(uuid.uuid4())) as opened:
        yield opened
