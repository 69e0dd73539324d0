"""The step cache: what it keeps and for how long, and how equal calls at the same time share one computation."""

from __future__ import annotations

import logging
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeserve.runtime.cache.key import CacheKey, cache_key
from pipeserve.runtime.cache.step_cache import Flight, Hit, Miss, NotCopiedError, StepCache, Ticket
from pipeserve.runtime.cache.value_size import size_of
from pipeserve.sdk.cache import Cache

PLAIN = Cache()
COPY = Cache(copy=True)


class ManualClock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def cache(clock: ManualClock) -> StepCache:
    return StepCache(ttl=60, max_entries=256, max_bytes=1 << 20, clock=clock)


def key(code: str = "code", **arguments: Any) -> CacheKey:
    return cache_key("step", code.encode(), arguments, PLAIN)


def lead(cache: StepCache, key: CacheKey, policy: Cache = PLAIN, step: str = "step", **options: Any) -> Ticket:
    """Enter, and find nothing."""
    ticket = cache.enter(step, key, policy, **options)
    assert isinstance(ticket, Ticket)
    assert ticket.leads
    return ticket


def follow(cache: StepCache, key: CacheKey, policy: Cache = PLAIN) -> Flight:
    """Enter, and join an equal call."""
    ticket = cache.enter("step", key, policy)
    assert isinstance(ticket, Ticket)
    assert not ticket.leads
    assert ticket.miss is None
    return ticket.flight


def hit(cache: StepCache, key: CacheKey, policy: Cache = PLAIN) -> Hit:
    """Enter, and find a result."""
    found = cache.enter("step", key, policy)
    assert isinstance(found, Hit)
    return found


def keep(
    cache: StepCache, key: CacheKey, value: Any, policy: Cache = PLAIN, seconds: float = 1.0, **options: Any
) -> bool:
    """Compute ``value`` as the only caller."""
    return cache.complete(lead(cache, key, policy).flight, value, seconds, **options)


def is_kept(cache: StepCache, key: CacheKey) -> bool:
    """Whether there is a result now. This counts as its use."""
    found = cache.enter("step", key, PLAIN)
    if isinstance(found, Ticket):
        cache.fail(found.flight, RuntimeError("only a look"))
    return isinstance(found, Hit)


# ---- what is kept


def test_a_result_is_found_by_its_key_with_its_age_and_what_it_saves(cache: StepCache, clock: ManualClock) -> None:
    value = [1]
    assert keep(cache, key(x=1), value, seconds=2.5)
    clock.now += 20
    found = hit(cache, key(x=1))
    assert found == Hit([1], age=20, ttl=40, saved=2.5)
    assert found.value is value
    assert not is_kept(cache, key(x=2))
    assert not is_kept(cache, key(y=1))
    assert not is_kept(cache, key("other code", x=1))


def test_two_steps_share_nothing_even_under_one_digest(cache: StepCache) -> None:
    keep(cache, key(x=1), "value")
    assert lead(cache, key(x=1), step="another").miss == Miss("first_call")


def test_a_result_lives_for_its_policys_time_or_else_for_the_default(cache: StepCache, clock: ManualClock) -> None:
    keep(cache, key(x=1), "short", Cache(ttl=10))
    keep(cache, key(x=2), "default")
    clock.now += 9.5
    assert hit(cache, key(x=1)).ttl == 0.5
    clock.now += 0.5
    assert lead(cache, key(x=1)).miss == Miss("expired")
    clock.now += 49.5
    assert is_kept(cache, key(x=2))
    clock.now += 0.5
    assert not is_kept(cache, key(x=2))
    assert cache.figures().entries == 0


def test_a_hit_does_not_make_a_result_live_longer(cache: StepCache, clock: ManualClock) -> None:
    keep(cache, key(x=1), "value")
    for _ in range(3):
        clock.now += 19
        assert is_kept(cache, key(x=1))
    clock.now += 3
    assert not is_kept(cache, key(x=1))


def test_a_new_result_takes_the_place_of_an_old_one_and_has_its_own_time(cache: StepCache, clock: ManualClock) -> None:
    keep(cache, key(x=1), "old")
    clock.now += 50
    cache.complete(lead(cache, key(x=1), read=False).flight, "new", 1.0)
    clock.now += 50  # the old one's time is over
    assert hit(cache, key(x=1)).value == "new"
    assert cache.figures().entries == 1
    assert cache.figures().bytes == size_of("new")


def test_expired_results_make_room_before_fresh_ones_do(clock: ManualClock) -> None:
    cache = StepCache(ttl=60, max_entries=2, max_bytes=1 << 20, clock=clock)
    keep(cache, key(x=1), "fresh", Cache(ttl=100))
    keep(cache, key(x=2), "expires", Cache(ttl=10))
    clock.now += 10
    keep(cache, key(x=3), "new")
    assert is_kept(cache, key(x=1))
    assert is_kept(cache, key(x=3))
    assert cache.figures().evictions == 0


def test_the_least_recently_used_result_goes_first(clock: ManualClock) -> None:
    cache = StepCache(ttl=60, max_entries=3, max_bytes=1 << 20, clock=clock)
    for x in (1, 2, 3):
        keep(cache, key(x=x), x)
    assert is_kept(cache, key(x=1))
    keep(cache, key(x=4), 4)
    assert [is_kept(cache, key(x=x)) for x in (1, 2, 3, 4)] == [True, False, True, True]
    assert cache.figures().evictions == 1


def test_ten_thousand_keys_leave_the_newest_256(cache: StepCache) -> None:
    for x in range(10_000):
        keep(cache, key(x=x), x)
    figures = cache.figures()
    assert (figures.entries, figures.evictions, figures.misses) == (256, 10_000 - 256, 10_000)
    assert all(is_kept(cache, key(x=x)) for x in range(10_000 - 256, 10_000))
    assert not is_kept(cache, key(x=10_000 - 257))


def test_what_is_remembered_besides_results_is_bounded_too(clock: ManualClock) -> None:
    cache = StepCache(ttl=60, max_entries=4, max_bytes=1 << 20, clock=clock)
    held: list[int] = []
    tracemalloc.start()
    for start in (0, 5000, 10_000):
        for x in range(start, start + 5000):
            keep_as(cache, f"step{x}", key(x=x))
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[2] < held[1] * 1.05


def keep_as(cache: StepCache, step: str, key: CacheKey) -> None:
    cache.complete(lead(cache, key, step=step).flight, None, 0.1)


def test_bytes_are_bounded(clock: ManualClock) -> None:
    cache = StepCache(ttl=60, max_entries=256, max_bytes=100_000, clock=clock)
    for x in range(50):
        assert keep(cache, key(x=x), bytes(9_000))
        assert cache.figures().bytes <= 100_000
    figures = cache.figures()
    assert figures.entries == 100_000 // size_of(bytes(9_000))
    assert figures.bytes == figures.entries * size_of(bytes(9_000))


def test_a_value_larger_than_all_room_is_not_kept_and_drives_nothing_out(clock: ManualClock) -> None:
    cache = StepCache(ttl=60, max_entries=256, max_bytes=100_000, clock=clock)
    keep(cache, key(x=1), "small")
    assert not keep(cache, key(x=2), np.zeros(20_000))
    assert is_kept(cache, key(x=1))
    assert lead(cache, key(x=2)).miss == Miss("evicted")


def test_with_no_entries_nothing_is_kept_and_equal_calls_still_share(clock: ManualClock) -> None:
    cache = StepCache(ttl=60, max_entries=0, max_bytes=1 << 20, clock=clock)
    flight = lead(cache, key(x=1)).flight
    assert follow(cache, key(x=1)) is flight
    assert not cache.complete(flight, "value", 1.0)
    assert flight.result() == "value"
    assert not is_kept(cache, key(x=1))


def test_what_is_not_to_be_stored_is_not(cache: StepCache) -> None:
    flight = lead(cache, key(x=1)).flight
    follow(cache, key(x=1))
    assert not cache.complete(flight, "value", 1.0, store=False)
    assert flight.result() == "value"
    assert lead(cache, key(x=1)).miss == Miss("first_call")


def test_a_result_from_elsewhere_is_kept_for_the_rest_of_its_time(cache: StepCache, clock: ManualClock) -> None:
    assert cache.put("step", key(x=1), PLAIN, "value", seconds=3.0, ttl=5)
    assert hit(cache, key(x=1)) == Hit("value", age=0, ttl=5, saved=3.0)
    assert keep(cache, key(x=2), "value", ttl=5)
    clock.now += 5
    assert not is_kept(cache, key(x=1))
    assert not is_kept(cache, key(x=2))
    assert not cache.put("step", key(x=3), PLAIN, "value", seconds=3.0, ttl=0)


def test_clear_forgets_results_but_no_flight(cache: StepCache) -> None:
    keep(cache, key(x=1), "value")
    flight = lead(cache, key(x=2)).flight
    cache.clear()
    assert cache.figures().entries == cache.figures().bytes == 0
    assert lead(cache, key(x=1)).miss == Miss("first_call")
    assert follow(cache, key(x=2)) is flight


def test_figures_count_what_happened(cache: StepCache) -> None:
    flight = lead(cache, key(x=1)).flight
    follow(cache, key(x=1))
    cache.complete(flight, "value", 2.0)
    hit(cache, key(x=1))
    hit(cache, key(x=1))
    lead(cache, key(x=1), read=False)  # was not to look, so it is no miss
    figures = cache.figures()
    assert (figures.hits, figures.misses, figures.joined, figures.saved_seconds) == (2, 1, 1, 4.0)
    assert (figures.entries, figures.bytes, figures.evictions) == (1, size_of("value"), 0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 400), st.sampled_from([1.0, 5.0, 60.0])), max_size=60))
def test_whatever_happens_the_bounds_hold_and_no_result_outlives_its_time(calls: list[tuple[int, int, float]]) -> None:
    clock = ManualClock()
    cache = StepCache(ttl=60, max_entries=3, max_bytes=600, clock=clock)
    expiries: dict[int, tuple[bytes, float]] = {}
    for x, length, ttl in calls:
        clock.now += 1
        found = cache.enter("step", key(x=x), Cache(ttl=ttl))
        if isinstance(found, Hit):
            value, expires = expiries[x]
            assert found.value is value
            assert found.ttl == expires - clock.now > 0
        else:
            expiries[x] = bytes(length), clock.now + ttl
            cache.complete(found.flight, expiries[x][0], 1.0)
        figures = cache.figures()
        assert figures.entries <= 3
        assert 0 <= figures.bytes <= 600
        assert (figures.bytes == 0) == (figures.entries == 0)


# ---- why a call missed


def test_a_miss_names_the_parts_that_differ_from_the_most_similar_call(cache: StepCache) -> None:
    assert lead(cache, key(a=1, b=1, c=1)).miss == Miss("first_call")
    for a, b, c in ((1, 1, 1), (2, 2, 2), (3, 3, 3)):
        keep(cache, key(f"code{a}", a=a, b=b, c=c), "value")
    assert lead(cache, key("code2", a=2, b=9, c=2)).miss == Miss("changed", ("b",))
    assert lead(cache, key("code9", a=2, b=9, c=2)).miss == Miss("changed", ("code", "b"))
    assert lead(cache, key("code9", a=3, b=3, c=3)).miss == Miss("changed", ("code",))
    assert lead(cache, key("code1", a=1, b=1)).miss == Miss("changed", ("c",))
    assert lead(cache, key("code1", a=1, b=1, c=1, d=1)).miss == Miss("changed", ("d",))


def test_of_calls_that_are_equally_similar_the_latest_counts(cache: StepCache) -> None:
    keep(cache, key(a=1, b=2), "value")
    keep(cache, key(a=2, b=1), "value")
    assert lead(cache, key(a=1, b=1)).miss == Miss("changed", ("a",))


def test_calls_are_compared_with_results_that_are_gone_too(clock: ManualClock) -> None:
    cache = StepCache(ttl=60, max_entries=1, max_bytes=1 << 20, clock=clock)
    keep(cache, key(a=1, b=1), "value")
    keep(cache, key(a=5, b=5), "value")
    clock.now += 100
    assert lead(cache, key(a=1, b=2)).miss == Miss("changed", ("b",))
    assert lead(cache, key(a=1, b=1)).miss == Miss("evicted")
    assert lead(cache, key(a=5, b=5)).miss == Miss("expired")


def test_a_result_that_expired_and_is_there_again_may_next_be_evicted(clock: ManualClock) -> None:
    cache = StepCache(ttl=60, max_entries=1, max_bytes=1 << 20, clock=clock)
    keep(cache, key(a=1), "value")
    clock.now += 60
    keep(cache, key(a=1), "value")
    keep(cache, key(a=2), "value")
    assert lead(cache, key(a=1)).miss == Miss("evicted")


def test_a_failed_call_leaves_nothing_to_compare_with(cache: StepCache) -> None:
    cache.fail(lead(cache, key(x=1)).flight, ValueError())
    assert lead(cache, key(x=1)).miss == Miss("first_call")


# ---- requests that ask for less


def test_a_request_that_does_not_read_leads_alone(cache: StepCache) -> None:
    keep(cache, key(x=1), "old")
    under_way = lead(cache, key(x=2)).flight
    for x in (1, 2):
        ticket = lead(cache, key(x=x), read=False)
        assert ticket.miss is None
        assert ticket.flight is not under_way
    alone = lead(cache, key(x=3), read=False).flight
    assert lead(cache, key(x=3)).flight is not alone
    cache.complete(alone, "new", 1.0)
    assert hit(cache, key(x=3)).value == "new"


def test_a_call_that_must_not_wait_computes_for_itself(cache: StepCache) -> None:
    under_way = lead(cache, key(x=1)).flight
    own = lead(cache, key(x=1), follow=False).flight
    assert own is not under_way
    assert follow(cache, key(x=1)) is under_way
    cache.complete(own, "value", 1.0)
    assert isinstance(cache.enter("step", key(x=1), PLAIN, follow=False), Hit)
    assert not under_way.done


# ---- single flight


def test_sixteen_threads_compute_once(cache: StepCache) -> None:
    start = threading.Barrier(16)
    others_wait = threading.Event()
    computed: list[int] = []
    joined = threading.Semaphore(0)

    def call(number: int) -> object:
        start.wait(5)
        found = cache.enter("step", key(x=1), PLAIN)
        assert isinstance(found, Ticket)
        if found.leads:
            for _ in range(15):
                assert joined.acquire(timeout=5)
            computed.append(number)
            others_wait.set()
            value = object()
            cache.complete(found.flight, value, 1.0)
            return value
        done = threading.Event()
        found.flight.on_done(done.set)
        joined.release()
        assert done.wait(5)
        return found.flight.result()

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(call, range(16)))
    assert len(computed) == 1
    assert len(set(map(id, results))) == 1
    assert cache.figures().joined == 15


def test_threads_that_come_and_go_never_compute_twice_nor_wait_for_nobody(cache: StepCache) -> None:
    computed: dict[int, int] = dict.fromkeys(range(200), 0)
    lock = threading.Lock()

    def call(x: int) -> object:
        found = cache.enter("step", key(x=x), PLAIN)
        if isinstance(found, Hit):
            return found.value
        if found.leads:
            with lock:
                computed[x] += 1
            cache.complete(found.flight, x, 0.0)
        done = threading.Event()
        found.flight.on_done(done.set)
        assert done.wait(5)
        return found.flight.result()

    with ThreadPoolExecutor(8) as pool:
        calls = [x for x in range(200) for _ in range(8)]
        assert list(pool.map(call, calls)) == calls
    assert set(computed.values()) == {1}


def test_a_waiter_that_leaves_leaves_the_others_alone(cache: StepCache) -> None:
    flight = lead(cache, key(x=1)).flight
    follow(cache, key(x=1))
    heard: list[str] = []
    forget = flight.on_done(lambda: heard.append("the one who left"))
    flight.on_done(lambda: heard.append("the leader"))
    forget()
    assert not flight.leave()
    assert not flight.abandoned
    cache.complete(flight, "value", 1.0)
    assert heard == ["the leader"]
    assert flight.result() == "value"


def test_when_the_leader_leaves_the_computation_goes_on_for_the_others(cache: StepCache) -> None:
    flight = lead(cache, key(x=1)).flight
    follow(cache, key(x=1))
    assert not flight.leave()
    assert not flight.abandoned
    assert follow(cache, key(x=1)) is flight


def test_the_last_who_leaves_abandons_the_flight_and_nobody_joins_it_any_more(cache: StepCache) -> None:
    flight = lead(cache, key(x=1)).flight
    follow(cache, key(x=1))
    stopped: list[str] = []
    flight.on_abandoned(lambda: stopped.append("at its end"))
    forget = flight.on_abandoned(lambda: stopped.append("never"))
    forget()
    assert not flight.leave()
    assert stopped == []
    assert flight.leave()
    assert flight.abandoned
    assert stopped == ["at its end"]
    flight.on_abandoned(lambda: stopped.append("at once"))
    assert stopped == ["at its end", "at once"]
    assert not flight.join()
    second = lead(cache, key(x=1)).flight
    assert second is not flight
    cache.fail(flight, RuntimeError("it stopped"))
    assert follow(cache, key(x=1)) is second


def test_an_abandoned_computation_that_finishes_all_the_same_is_kept(cache: StepCache) -> None:
    flight = lead(cache, key(x=1)).flight
    flight.leave()
    assert cache.complete(flight, "value", 1.0)
    assert hit(cache, key(x=1)).value == "value"


def test_to_leave_what_is_done_abandons_nothing(cache: StepCache) -> None:
    flight = lead(cache, key(x=1)).flight
    stopped: list[None] = []
    flight.on_abandoned(lambda: stopped.append(None))
    cache.complete(flight, "value", 1.0)
    assert flight.leave()
    assert not flight.abandoned
    assert not stopped
    with pytest.raises(RuntimeError, match="more often than join"):
        flight.leave()


def test_an_error_reaches_all_who_wait_and_is_not_kept(cache: StepCache) -> None:
    flight = lead(cache, key(x=1)).flight
    heard: list[bool] = []
    follow(cache, key(x=1)).on_done(lambda: heard.append(flight.done))
    error = ValueError("broken")
    try:
        raise error
    except ValueError:
        cache.fail(flight, error)
    assert heard == [True]
    depths = set[int]()
    for _ in range(3):
        with pytest.raises(ValueError, match="broken") as caught:
            flight.result()
        assert caught.value is error
        depths.add(len(caught.traceback))
    assert len(depths) == 1  # whoever raises it again adds nothing to it for the others
    assert lead(cache, key(x=1)).flight is not flight
    assert cache.figures().entries == 0


def test_who_asks_after_the_end_is_told_at_once(cache: StepCache) -> None:
    flight = lead(cache, key(x=1)).flight
    with pytest.raises(RuntimeError, match="not done"):
        flight.result()
    cache.complete(flight, "value", 1.5)
    heard: list[str] = []
    forget = flight.on_done(lambda: heard.append("now"))
    forget()
    assert heard == ["now"]
    assert flight.seconds == 1.5


def test_the_first_end_counts(cache: StepCache) -> None:
    flight = lead(cache, key(x=1)).flight
    cache.complete(flight, "value", 1.0)
    cache.fail(flight, RuntimeError("late"))
    assert flight.result() == "value"


def test_a_waiter_that_cannot_be_told_costs_the_others_nothing(
    cache: StepCache, caplog: pytest.LogCaptureFixture
) -> None:
    flight = lead(cache, key(x=1)).flight
    heard: list[str] = []

    def closed() -> None:
        raise RuntimeError("Event loop is closed")

    flight.on_done(closed)
    flight.on_done(lambda: heard.append("told"))
    with caplog.at_level(logging.ERROR):
        cache.complete(flight, "value", 1.0)
    assert heard == ["told"]
    assert "could not be told" in caplog.text


# ---- copies


class Unique:
    """Can't be copied."""

    def __deepcopy__(self, memo: object) -> object:
        raise TypeError("there is only one")


@dataclass
class CopiedOnce:
    """Can be copied, but its copy can't."""

    copied: bool = False

    def __deepcopy__(self, memo: object) -> CopiedOnce:
        if self.copied:
            raise TypeError("that was the last")
        return CopiedOnce(copied=True)


def test_by_default_all_share_one_value(cache: StepCache) -> None:
    value: list[int] = []
    flight = lead(cache, key(x=1)).flight
    follow(cache, key(x=1))
    cache.complete(flight, value, 1.0)
    assert flight.result() is flight.result() is hit(cache, key(x=1)).value is value


def test_with_copy_neither_side_can_change_what_is_kept(cache: StepCache) -> None:
    value = {"rows": [1]}
    flight = lead(cache, key(x=1), COPY).flight
    follow(cache, key(x=1), COPY)
    cache.complete(flight, value, 1.0)
    value["rows"].append("by the one who computed it")  # type: ignore[arg-type]
    flight.result()["rows"].append("by one who joined")
    hit(cache, key(x=1), COPY).value["rows"].append("by one who found it")
    assert flight.result() == hit(cache, key(x=1), COPY).value == {"rows": [1]}


def test_with_copy_the_one_who_computed_a_value_has_it_itself(cache: StepCache) -> None:
    value = [1]
    alone = lead(cache, key(x=1), COPY).flight
    cache.complete(alone, value, 1.0)
    assert alone.result() is value
    joined = lead(cache, key(x=2), COPY).flight
    follow(cache, key(x=2), COPY)
    cache.complete(joined, value, 1.0)
    assert joined.result(leads=True) is value
    assert joined.result() is not value


def test_with_copy_a_result_from_elsewhere_is_copied(cache: StepCache) -> None:
    value = [1]
    cache.put("step", key(x=1), COPY, value, seconds=1.0, ttl=5)
    value.append(2)
    assert hit(cache, key(x=1), COPY).value == [1]


def test_what_cannot_be_copied_is_not_kept_and_others_are_told_to_compute_it(cache: StepCache) -> None:
    value = Unique()
    flight = lead(cache, key(x=1), COPY).flight
    follow(cache, key(x=1), COPY)
    assert not cache.complete(flight, value, 1.0)
    assert flight.result(leads=True) is value
    with pytest.raises(NotCopiedError, match=r"its result, a tests.*Unique, can't be deep-copied"):
        flight.result()
    assert lead(cache, key(x=1), COPY).miss == Miss("evicted")


def test_a_kept_value_that_cannot_be_copied_any_more_is_a_miss(cache: StepCache) -> None:
    assert keep(cache, key(x=1), CopiedOnce(), COPY)
    assert lead(cache, key(x=1), COPY).miss == Miss("evicted")
    figures = cache.figures()
    assert (figures.hits, figures.misses, figures.entries, figures.saved_seconds) == (0, 2, 0, 0)


def test_copies_are_made_outside_the_lock(cache: StepCache) -> None:
    class Asks:
        def __deepcopy__(self, memo: object) -> Asks:
            with ThreadPoolExecutor(1) as pool:  # would never end under the lock
                pool.submit(cache.figures).result(5)
            return Asks()

    assert keep(cache, key(x=1), Asks(), COPY)
    assert hit(cache, key(x=1), COPY)


# ---- sizes


def rough(value: object, expected: float) -> bool:
    return 0.5 * expected < size_of(value) < 2 * expected


@dataclass
class Result:
    data: Any


@dataclass(slots=True)
class SlimResult:
    data: Any


SIZES: list[tuple[Callable[[], object], float]] = [
    (lambda: bytes(1_000_000), 1e6),
    (lambda: "x" * 1_000_000, 1e6),
    (lambda: "\u4e2d" * 1_000_000, 2e6),
    (lambda: memoryview(bytes(1_000_000)), 1e6),
    (lambda: np.zeros(1_000_000), 8e6),
    (lambda: np.zeros((1000, 1000))[:10, :10], 8e6),  # keeps the whole alive
    (lambda: np.array([str(number) * 300 for number in range(100, 1100)], object), 1e6),
    (lambda: [float(number) for number in range(100_000)], 3.2e6),
    (lambda: {str(number): bytes(1000) for number in range(10_000)}, 1e7),
    (lambda: {bytes([number % 256, number // 256]) * 500 for number in range(1000)}, 1e6),
    (lambda: [[bytes(100) for _ in range(100)] for _ in range(1000)], 1.4e7),
    (lambda: [bytes(1_000_000)] * 50, 1e6),
    (lambda: Result(bytes(1_000_000)), 1e6),
    (lambda: SlimResult([bytes(1_000_000)]), 1e6),
    (lambda: pd.DataFrame({"a": np.zeros(100_000), "b": ["x" * 100] * 100_000}), 1.6e7),
    (lambda: pd.Series(["x" * 100] * 10_000, dtype=object), 1.5e6),
    (lambda: pd.Index(np.arange(100_000)), 8e5),
]


@pytest.mark.parametrize(("make", "expected"), SIZES)
def test_sizes_are_near_what_a_value_holds(make: Callable[[], object], expected: float) -> None:
    assert rough(make(), expected), size_of(make())


def test_sizes_of_bytes_and_arrays_are_exact() -> None:
    assert size_of(np.zeros(1000)) == 8000
    assert size_of(bytes(1000)) - size_of(b"") == 1000


def test_a_value_inside_itself_has_a_size() -> None:
    value: list[Any] = [bytes(1000)]
    value.append(value)
    assert 1000 < size_of(value) < 2000


def test_the_size_of_a_large_value_is_found_by_a_bounded_number_of_looks() -> None:
    looks = 0

    class Looked:
        def __sizeof__(self) -> int:
            nonlocal looks
            looks += 1
            return 100

    size_of([[[Looked() for _ in range(40)] for _ in range(40)] for _ in range(40)])
    assert 0 < looks <= 2048


def test_an_object_that_raises_when_it_is_looked_at_has_a_size() -> None:
    class Shy:
        def __sizeof__(self) -> int:
            raise RuntimeError("no")

    assert size_of([Shy(), bytes(1000)]) > 1000
