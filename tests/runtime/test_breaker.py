"""The circuit breaker, with a clock that the test moves."""

from __future__ import annotations

from typing import Any

import pytest

from pipeserve.runtime.breaker import BreakerState, CircuitBreaker


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def made(**options: Any) -> tuple[CircuitBreaker, Clock, list[BreakerState]]:
    clock = Clock()
    seen: list[BreakerState] = []
    given: dict[str, Any] = {"error_threshold": 0.5, "min_events": 4, "open_seconds": 10.0, "window_seconds": 60.0}
    return CircuitBreaker(**{**given, **options}, clock=clock, on_change=seen.append), clock, seen


def opened(**options: Any) -> tuple[CircuitBreaker, Clock, list[BreakerState]]:
    breaker, clock, seen = made(**options)
    breaker.failed(4)
    assert breaker.state is BreakerState.OPEN
    return breaker, clock, seen


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("error_threshold", 0.0),
        ("error_threshold", 1.1),
        ("min_events", 0),
        ("open_seconds", 0.0),
        ("window_seconds", -1.0),
    ],
)
def test_a_wrong_option_is_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        made(**{option: value})


def test_it_stays_closed_below_the_least_number_of_events() -> None:
    breaker, _, seen = made()
    breaker.failed(3)
    assert (breaker.state, breaker.allow(), breaker.wait) == (BreakerState.CLOSED, True, 0.0)
    breaker.failed(1)
    assert (breaker.state, breaker.allow()) == (BreakerState.OPEN, False)
    assert seen == [BreakerState.OPEN]


def test_it_opens_at_the_threshold_and_not_below() -> None:
    breaker, _, _ = made(error_threshold=0.1, min_events=100)
    breaker.succeeded(901)
    breaker.failed(100)
    assert breaker.state is BreakerState.CLOSED, "100 of 1001"
    breaker.failed(1)
    assert breaker.state is BreakerState.OPEN, "101 of 1002"


def test_items_are_counted_and_not_calls() -> None:
    breaker, _, _ = made(min_events=64)
    breaker.failed(64)
    assert breaker.state is BreakerState.OPEN


def test_what_is_older_than_the_window_is_forgotten() -> None:
    breaker, clock, _ = made()
    breaker.succeeded(1000)
    clock.now += 30
    breaker.failed(4)
    assert breaker.state is BreakerState.CLOSED, "the successes still count"
    clock.now += 31
    breaker.failed(1)
    assert breaker.state is BreakerState.OPEN, "only the failures are left"


def test_failures_older_than_the_window_do_not_open_it() -> None:
    breaker, clock, _ = made()
    for _ in range(20):
        breaker.failed(3)
        assert breaker.state is BreakerState.CLOSED
        clock.now += 61


def test_its_memory_does_not_grow_with_what_it_counts() -> None:
    breaker, clock, _ = made(error_threshold=1.0)
    for _ in range(10_000):
        breaker.succeeded(1)
        breaker.failed(1)
        clock.now += 0.37
    assert len(breaker._buckets) <= 61
    assert breaker._successes == sum(bucket[1] for bucket in breaker._buckets)


def test_nothing_is_allowed_until_it_has_been_open_long_enough() -> None:
    breaker, clock, _ = opened()
    clock.now += 9.5
    assert not breaker.allow()
    assert breaker.wait == pytest.approx(0.5)
    clock.now += 0.5
    assert breaker.wait == 0.0
    assert breaker.state is BreakerState.OPEN, "time alone changes nothing"
    assert breaker.allow()
    assert breaker.state is BreakerState.HALF_OPEN


def test_one_probe_at_a_time() -> None:
    breaker, clock, _ = opened()
    clock.now += 10
    assert [breaker.allow() for _ in range(3)] == [True, False, False]


def test_a_probe_that_goes_well_closes_it_with_a_clean_slate() -> None:
    breaker, clock, seen = opened()
    clock.now += 10
    breaker.allow()
    breaker.succeeded(1)
    assert (breaker.state, breaker.allow()) == (BreakerState.CLOSED, True)
    breaker.failed(3)
    assert breaker.state is BreakerState.CLOSED, "what was before it opened is forgotten"
    assert seen == [BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED]


def test_a_probe_that_fails_opens_it_for_as_long_again() -> None:
    breaker, clock, seen = opened()
    clock.now += 10
    breaker.allow()
    clock.now += 3
    breaker.failed(1)
    assert (breaker.state, breaker.allow()) == (BreakerState.OPEN, False)
    clock.now += 9.9
    assert not breaker.allow()
    clock.now += 0.2
    assert breaker.allow()
    assert seen == [BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.OPEN, BreakerState.HALF_OPEN]


def test_a_probe_that_never_ends_does_not_hold_it_half_open_for_ever() -> None:
    breaker, clock, _ = opened()
    clock.now += 10
    assert breaker.allow()
    clock.now += 9
    assert not breaker.allow()
    clock.now += 1
    assert breaker.allow()


def test_what_ends_while_it_is_open_changes_nothing() -> None:
    breaker, _, _ = opened()
    breaker.succeeded(100)
    breaker.failed(100)
    assert (breaker.state, breaker.wait) == (BreakerState.OPEN, 10.0)
