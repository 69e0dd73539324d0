"""What a process tells the store of its step cache, and when it has nothing to tell."""

from __future__ import annotations

from typing import Any

from tests.api.harness import wait_until

from pipeserve import Cache
from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.cache.key import cache_key
from pipeserve.runtime.cache.step_cache import StepCache
from pipeserve.runtime.cache.teller import CacheTeller
from pipeserve.runtime.ports import CacheGauges


class Listener:
    """Operations that note what they are told."""

    def __init__(self) -> None:
        self.told: list[CacheGauges] = []
        self.away = False
        self.refused = 0

    async def tell_cache(self, owner: str, gauges: CacheGauges) -> None:
        assert owner == "me"
        if self.away:
            self.refused += 1
            raise StoreUnavailableError("away")
        self.told.append(gauges)


class Scene:
    """A cache, who listens, and a clock."""

    def __init__(self) -> None:
        self.cache = StepCache(ttl=60, max_entries=10, max_bytes=10_000)
        self.listener: Any = Listener()
        self.now = 0.0
        self.teller = CacheTeller(self.cache, self.listener, "me", interval=0.001, clock=lambda: self.now)

    def keep(self, value: int) -> None:
        key = cache_key("step", b"code", {"value": value}, Cache())
        self.cache.put("step", key, Cache(), value, seconds=0.1, ttl=60)


async def test_a_cache_that_was_never_used_is_never_told_of():
    scene = Scene()
    await scene.teller.tell()
    scene.now = 100.0
    await scene.teller.tell(anew=True)
    assert scene.listener.told == []


async def test_what_changed_is_told_at_once_and_what_did_not_only_before_it_is_forgotten():
    scene = Scene()
    scene.keep(1)
    await scene.teller.tell()
    await scene.teller.tell()
    assert [gauges.entries for gauges in scene.listener.told] == [1]
    scene.keep(2)
    await scene.teller.tell()
    assert [gauges.entries for gauges in scene.listener.told] == [1, 2]
    scene.now = 29.0
    await scene.teller.tell()
    assert len(scene.listener.told) == 3, "the store forgets it after 30 seconds"


async def test_who_asks_for_figures_has_it_told_anew():
    scene = Scene()
    scene.keep(1)
    await scene.teller.tell()
    await scene.teller.tell(anew=True)
    assert len(scene.listener.told) == 2


async def test_an_emptied_cache_is_told_once():
    scene = Scene()
    scene.keep(1)
    await scene.teller.tell()
    scene.cache.clear()
    for scene.now in (0.0, 50.0):
        await scene.teller.tell()
    assert [gauges.entries for gauges in scene.listener.told] == [1, 0]


async def test_it_goes_on_telling_in_the_background_after_the_store_was_away():
    scene = Scene()
    async with scene.teller.telling():
        scene.listener.away = True
        scene.keep(1)
        await wait_until(lambda: scene.listener.refused > 1, "it has tried more than once")
        scene.listener.away = False
        await wait_until(lambda: scene.listener.told, "the first is told")
        scene.keep(2)
        await wait_until(lambda: scene.listener.told[-1].entries == 2, "the second is told")
