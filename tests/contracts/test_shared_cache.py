"""Step results that all processes share, and how full each process's own cache is."""

from __future__ import annotations

import pytest
from tests.contracts.stores import Ports
from tests.store_fixtures import wait_until

from pipeserve.runtime.ports import CacheGauges


async def test_a_result_is_found_with_the_time_for_which_it_may_still_be_used(ports: Ports) -> None:
    assert await ports.cache.get("digest") is None
    await ports.cache.set("digest", b"\x00value\xff", 60.0)
    await ports.cache.set("empty", b"", 60.0)
    found = await ports.cache.get("digest")
    assert found is not None
    value, remaining = found
    assert value == b"\x00value\xff"
    assert 50 < remaining <= 60
    empty = await ports.cache.get("empty")
    assert empty is not None
    assert empty[0] == b""
    assert b"value" in await ports.everything()


async def test_setting_a_result_again_replaces_it_and_its_time(ports: Ports) -> None:
    await ports.cache.set("digest", b"old", 1000.0)
    await ports.cache.set("digest", b"new", 60.0)
    found = await ports.cache.get("digest")
    assert found is not None
    assert found == (b"new", pytest.approx(60, abs=10))


async def test_a_result_is_gone_when_its_time_is_over(ports: Ports) -> None:
    await ports.cache.set("short", b"value", 0.02)
    await ports.cache.set("shortest", b"value", 0.0001)
    await ports.cache.set("long", b"value", 60.0)

    async def gone() -> bool:
        return (await ports.cache.get("short"), await ports.cache.get("shortest")) == (None, None)

    await wait_until(gone, description="the results have expired")
    assert await ports.cache.get("long") is not None


async def test_the_figures_sum_what_processes_told_of_their_caches_of_late(ports: Ports) -> None:
    assert (await ports.operations.figures()).cache == CacheGauges()
    await ports.operations.tell_cache("host:1:a", CacheGauges(entries=200, bytes=5_000_000_000))
    await ports.operations.tell_cache("host:2:b", CacheGauges(entries=10, bytes=100))
    await ports.operations.tell_cache("host:2:b", CacheGauges(entries=3, bytes=50))  # the last word counts
    assert (await ports.operations.figures()).cache == CacheGauges(203, 5_000_000_050)
    await ports.age_caches()
    await ports.operations.tell_cache("host:3:c", CacheGauges(entries=1, bytes=10))
    assert (await ports.operations.figures()).cache == CacheGauges(1, 10)
    assert b"host:1:a" not in await ports.everything()  # forgotten, not only left out
    await ports.age_caches()
    assert (await ports.operations.figures()).cache == CacheGauges()
