"""The background publisher, with a store that the test lets answer, refuse or hang."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.store_fixtures import wait_until

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.breaker import CircuitBreaker
from pipeserve.runtime.recording.publisher import Publisher, PublisherFigures


class FakeStore:
    """What a publisher writes to. ``error`` is raised by each write; ``held`` holds them up."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.held = asyncio.Event()
        self.held.set()
        self.tries: list[list[int]] = []
        self.written: list[int] = []
        self.released: list[int] = []

    async def write(self, items: Sequence[int]) -> None:
        self.tries.append(list(items))
        await self.held.wait()
        if self.error is not None:
            raise self.error
        self.written += items


AWAY = StoreUnavailableError("nobody is there")


def a_breaker(**options: Any) -> CircuitBreaker:
    """One that opens at once; for long enough to look at it, unless told otherwise."""
    given: dict[str, Any] = {"error_threshold": 0.5, "min_events": 1, "open_seconds": 3600.0}
    return CircuitBreaker(**{**given, **options})


def never_opens() -> CircuitBreaker:
    return a_breaker(min_events=10**9)


@asynccontextmanager
async def publishing(
    store: FakeStore, breaker: CircuitBreaker, **options: Any
) -> AsyncIterator[tuple[Publisher[int], Callable[[], PublisherFigures]]]:
    options = {"close_timeout": 5.0, **options}
    async with Publisher(store.write, released=store.released.append, breaker=breaker, **options) as publisher:
        yield publisher, publisher.figures


async def test_items_are_written_in_order_and_in_batches() -> None:
    store = FakeStore()
    async with publishing(store, a_breaker(), max_batch=4) as (publisher, figures):
        for item in range(10):
            publisher.publish(item)
        await wait_until(lambda: figures().processed == 10, description="all are written")
        assert store.written == store.released == list(range(10))
        assert [len(batch) for batch in store.tries] == [4, 4, 2]
        assert figures() == PublisherFigures(10, 10, 0, 0, 0, "closed")


async def test_what_the_store_refuses_is_tried_again_while_the_breaker_is_closed() -> None:
    store = FakeStore()
    store.error = AWAY
    async with publishing(store, never_opens(), max_batch=4) as (publisher, figures):
        for item in range(6):
            publisher.publish(item)
        await wait_until(lambda: figures().failed_total >= 2, description="it is tried again")
        assert (figures().queue_depth, store.released) == (6, [])
        store.error = None
        await wait_until(lambda: figures().processed == 6, description="all are written")
        assert store.written == list(range(6))
        assert store.tries[0] == store.tries[1] == [0, 1, 2, 3]
        assert figures().dropped == 0


async def test_what_does_not_fit_pushes_out_the_oldest() -> None:
    store = FakeStore()
    store.held.clear()
    async with publishing(store, never_opens(), max_batch=2, max_queue=5) as (publisher, figures):
        publisher.publish(0)
        await wait_until(lambda: store.tries, description="a try is under way")
        for item in range(1, 9):
            publisher.publish(item)
        assert (figures().queue_depth, figures().dropped) == (5, 4)
        assert store.released == [1, 2, 3, 4], "the one that is being written stays"
        store.held.set()
        await wait_until(lambda: figures().processed == 5, description="the rest is written")
        assert store.written == [0, 5, 6, 7, 8]


async def test_what_waits_is_bounded_by_size_too() -> None:
    store = FakeStore()
    store.held.clear()
    sizes = {"size_of": lambda item: 10 * item, "max_bytes": 100}
    async with publishing(store, never_opens(), **sizes) as (publisher, figures):
        publisher.publish(1)
        await wait_until(lambda: store.tries, description="a try is under way")
        for item in (3, 5, 4):
            publisher.publish(item)
        assert store.released == [3], "10 + 30 + 50 + 40 bytes are too many"
        publisher.publish(99)
        assert store.released == [3, 5, 4], "one that is too large alone is kept alone"
        store.held.set()
        await wait_until(lambda: figures().queue_depth == 0, description="the rest is written")
        assert store.written == [1, 99]


async def test_a_batch_is_bounded_by_size_too() -> None:
    store = FakeStore()
    async with publishing(store, a_breaker(), size_of=lambda _: 600_000) as (publisher, figures):
        for item in range(3):
            publisher.publish(item)
        await wait_until(lambda: figures().processed == 3, description="all are written")
        assert store.tries == [[0], [1], [2]]


async def test_while_the_breaker_is_open_nothing_is_tried_and_the_newest_batch_is_kept() -> None:
    store = FakeStore()
    store.error = AWAY
    async with publishing(store, a_breaker(), max_batch=4) as (publisher, figures):
        for item in range(20):
            publisher.publish(item)
        await wait_until(lambda: figures().breaker == "open", description="the breaker opens")
        assert (figures().failed_total, figures().queue_depth, figures().dropped) == (1, 4, 16)
        for item in range(20, 1000):
            publisher.publish(item)
            assert figures().queue_depth == 4
        await asyncio.sleep(0)
        assert len(store.tries) == 1
        assert store.released == list(range(996))
        assert figures().dropped == 996


async def test_the_breaker_closes_by_itself_and_what_was_kept_follows() -> None:
    store = FakeStore()
    store.error = AWAY
    async with publishing(store, a_breaker(open_seconds=0.02), max_batch=4) as (publisher, figures):
        for item in range(8):
            publisher.publish(item)
        await wait_until(lambda: figures().failed_total >= 3, description="probes are refused")
        assert all(len(probe) == 1 for probe in store.tries[1:])
        assert figures().queue_depth == 4
        store.error = None
        await wait_until(lambda: figures().processed == 4, description="the rest is written")
        assert (store.written, figures().breaker) == ([4, 5, 6, 7], "closed")


async def test_a_store_that_does_not_answer_has_refused() -> None:
    store = FakeStore()
    store.held.clear()
    async with publishing(store, a_breaker(open_seconds=0.02), write_timeout=0.02) as (publisher, figures):
        publisher.publish(1)
        await wait_until(lambda: figures().breaker == "open", description="the breaker opens")
        assert figures().failed_total >= 1
        store.held.set()
        await wait_until(lambda: figures().processed == 1, description="it is written")


async def test_items_that_are_pushed_out_while_the_store_refuses_count_as_failures() -> None:
    store = FakeStore()
    breaker = CircuitBreaker(error_threshold=0.5, min_events=1, open_seconds=3600)
    breaker.succeeded(100)
    async with publishing(store, breaker, max_batch=4, max_queue=10) as (publisher, figures):
        store.error = AWAY
        publisher.publish(0)
        await wait_until(lambda: figures().failed_total >= 1, description="the store refuses")
        store.held.clear()  # no more answers
        for item in range(200):
            publisher.publish(item)
        assert figures().breaker == "open"


async def test_a_store_that_is_only_too_slow_does_not_open_the_breaker() -> None:
    store = FakeStore()
    store.held.clear()
    async with publishing(store, a_breaker(), max_batch=4, max_queue=10) as (publisher, figures):
        for item in range(4):
            publisher.publish(item)
        await wait_until(lambda: store.tries, description="a try is under way")
        for item in range(4, 1000):
            publisher.publish(item)
        assert (figures().breaker, figures().dropped, figures().queue_depth) == ("closed", 990, 10)
        store.held.set()
        await wait_until(lambda: figures().processed == 10, description="the rest is written")


async def test_one_item_that_cannot_be_written_takes_no_other_along(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(FakeStore):
        async def write(self, items: Sequence[int]) -> None:
            self.tries.append(list(items))
            if 3 in items:
                raise ValueError("three is wrong")
            self.written += items

    store = Picky()
    async with publishing(store, a_breaker(min_events=5), max_batch=8) as (publisher, figures):
        for item in range(8):
            publisher.publish(item)
        await wait_until(lambda: figures().queue_depth == 0, description="all are dealt with")
        assert store.written == [0, 1, 2, 4, 5, 6, 7]
        assert (figures().processed, figures().dropped, figures().breaker) == (7, 1, "closed")
        assert store.released == list(range(8))
    assert caplog.records[0].exc_info is not None, "an error of our own has its traceback"
    assert "three is wrong" in caplog.records[0].getMessage()


async def test_trouble_is_told_once_per_interval_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    store = FakeStore()
    store.error = AWAY
    options = {"max_batch": 4, "max_queue": 4, "report_interval": 15.0, "clock": lambda: now}
    async with publishing(store, a_breaker(open_seconds=0.02, min_events=10), **options) as (publisher, figures):
        for item in range(100):
            publisher.publish(item)
        await wait_until(lambda: figures().failed_total >= 4, description="it fails again and again")
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("finished runs can't be recorded: ")

        now = 14.9
        for item in range(50):
            publisher.publish(item)
        assert len(caplog.messages) == 1
        now = 15.0
        publisher.publish(1)
        assert len(caplog.messages) == 2
        assert "nobody is there; dropped since the last report: 146" in caplog.messages[1]

        publisher.publish(2)
        store.error = None
        await wait_until(lambda: figures().queue_depth == 0, description="all is written")
        publisher.publish(3)
        await wait_until(lambda: figures().queue_depth == 0, description="all is written")
        assert caplog.messages[2:] == ["finished runs are recorded again; dropped since the last report: 1"]
    assert len(caplog.messages) == 3


async def test_leaving_waits_for_no_store_that_is_away_and_says_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore()
    store.error = AWAY
    async with publishing(store, a_breaker(), close_timeout=3600) as (publisher, figures):
        for item in range(3):
            publisher.publish(item)
        await wait_until(lambda: figures().breaker == "open", description="the breaker opens")
    assert caplog.messages[-1] == "3 finished runs were not recorded: the store was away at shutdown"


async def test_leaving_waits_for_what_the_store_takes() -> None:
    store = FakeStore()
    async with publishing(store, a_breaker()) as (publisher, _):
        for item in range(200):
            publisher.publish(item)
    assert store.written == list(range(200))
