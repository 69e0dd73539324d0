"""The step cache's second tier: results in the store, for every process of the deployment (``Cache(scope="shared")``).

It never fails or slows a run by much: a store that does not answer soon is a miss, and results are written in the
background.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import orjson

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.breaker import CircuitBreaker
from pipeserve.runtime.cache.key import CacheKey
from pipeserve.runtime.ports import SharedCache
from pipeserve.runtime.step_spec import StepSpec
from pipeserve.runtime.values.codec import Codec, NotStorableError

_log = logging.getLogger(__name__)
_PATIENCE = 0.25  # seconds for the store to answer; then the step is computed
_MOST_WRITES = 256  # results on their way to the store; a further one is not kept
_LARGEST = 4_194_304  # bytes of one result: the store holds all of them in memory


@dataclass(frozen=True, slots=True)
class SharedResult:
    """A result that some process of the deployment has computed. ``seconds``: what that took; ``ttl``: its rest."""

    value: Any
    seconds: float
    ttl: float


class SharedTier:
    """Finds and keeps results. ``find`` is awaited on the loop; ``keep`` may be called from any thread."""

    def __init__(
        self,
        cache: SharedCache,
        codec: Codec,
        loop: asyncio.AbstractEventLoop,
        *,
        default_ttl: float,
        breaker: CircuitBreaker,
    ) -> None:
        self._cache = cache
        self._codec = codec
        self._loop = loop
        self._default_ttl = default_ttl
        self._breaker = breaker
        self._writes: set[asyncio.Task[None]] = set()
        self._told: set[str] = set()

    async def find(self, spec: StepSpec, key: CacheKey) -> SharedResult | None:
        """The result under ``key``; None: there is none, or the store does not say."""
        if not self._breaker.allow():
            return None
        try:
            async with asyncio.timeout(_PATIENCE):
                found = await self._cache.get(key.digest)
        except (StoreUnavailableError, TimeoutError):
            self._breaker.failed(1)
            return None
        self._breaker.succeeded(1)
        if found is None:
            return None
        data, ttl = found
        header, _, body = data.partition(b"\n")
        try:
            seconds = float(orjson.loads(header)["seconds"])
            return SharedResult(self._codec.decode(body, spec.returns), seconds, ttl)
        except (ValueError, KeyError, TypeError) as error:  # an older version wrote it, or the type has changed
            self._tell(spec, f"a shared result can't be read: {error}")
            return None

    def keep(self, spec: StepSpec, key: CacheKey, value: Any, seconds: float) -> None:
        """Keep a result for all, in the background. One that has no stored form is kept in this process only."""
        try:
            body = self._codec.encode(value, spec.returns)
        except NotStorableError as error:
            self._tell(spec, f"its result is not shared: {error}")
            return
        if len(body) > _LARGEST:
            self._tell(spec, f"its result is not shared: it has {len(body)} bytes, and {_LARGEST} is the most")
            return
        data = orjson.dumps({"seconds": seconds}) + b"\n" + body
        ttl = self._default_ttl if spec.cache is None or spec.cache.ttl is None else spec.cache.ttl
        self._loop.call_soon_threadsafe(self._start, key.digest, data, ttl)

    async def aclose(self) -> None:
        """Wait a moment for results on their way."""
        if self._writes:
            await asyncio.wait(list(self._writes), timeout=1.0)
        for task in self._writes:
            task.cancel()

    def _start(self, digest: str, data: bytes, ttl: float) -> None:
        if len(self._writes) >= _MOST_WRITES or not self._breaker.allow():
            return
        task = self._loop.create_task(self._write(digest, data, ttl))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _write(self, digest: str, data: bytes, ttl: float) -> None:
        try:
            await self._cache.set(digest, data, ttl)
        except StoreUnavailableError:
            self._breaker.failed(1)
        else:
            self._breaker.succeeded(1)

    def _tell(self, spec: StepSpec, words: str) -> None:
        """Once for each step: it would be the same words for every call."""
        name = spec.definition.name
        if name not in self._told:
            self._told.add(name)
            _log.warning("step %r: %s", name, words)
