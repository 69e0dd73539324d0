"""Serves a pipeline for a whole hypothesis test: on an event loop of its own, since each example runs on the test's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from tests.api.harness import Served, serving
from tests.api.worker import working
from tests.own_loop import on_own_loop

from pipeserve.sdk.pipeline import Pipeline
from pipeserve.settings import StoreSettings
from pipeserve.store import open_store

T = TypeVar("T")
EXAMPLES = int(os.environ.get("PIPESERVE_FUZZ_EXAMPLES", "0"))
"""0: a few, and the same ones each time. Above: a hunt, with other ones each time."""


def examples(usual: int) -> settings:
    """The settings of a test that tries so many examples unless a hunt was asked for."""
    return settings(
        max_examples=EXAMPLES or usual,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


LONG = pytest.mark.timeout(3600 if EXAMPLES else 60)
"""For the module: a hunt takes longer."""


class Running:
    """A service, and the loop that it and its callers run on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, served: Served) -> None:
        self._loop = loop
        self.served = served

    def do(self, work: Coroutine[Any, Any, T], *, seconds: float = 20) -> T:
        """What ``work`` returns; it runs on the service's loop."""

        async def bounded() -> T:
            async with asyncio.timeout(seconds):
                return await work

        return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result(seconds + 5)

    def request(self, method: str, path: str, **options: Any) -> Any:
        """One HTTP request's answer."""
        return self.do(self.served.http.request(method, path, **options))


@contextmanager
def running(
    pipeline: Pipeline[..., Any], store_url: str, *, service: dict[str, Any] | None = None
) -> Iterator[Running]:
    """A service over the store at ``store_url`` with a worker, until the block ends."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Running]:
        settings = StoreSettings.from_environment(redis_url=store_url, lease_seconds=60)
        async with (
            open_store(settings) as store,
            store.deployment("fuzzed") as backend,
            serving(pipeline, backend=backend, service=service) as served,
            working(served),
        ):
            yield Running(asyncio.get_running_loop(), served)

    with on_own_loop(opened, name="fuzzed-service") as found:
        yield found
