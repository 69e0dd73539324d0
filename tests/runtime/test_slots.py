"""How many runs one process has room for."""

from __future__ import annotations

import pytest

from pipeserve.errors import OverloadedError
from pipeserve.runtime.slots import Slots


def test_there_is_room_up_to_the_limit() -> None:
    slots = Slots(2)
    slots.check(1)
    with pytest.raises(OverloadedError, match="ZENML_SERVING_MAX_CONCURRENCY"):
        slots.check(2)


def test_room_that_is_held_for_a_run_is_no_room_for_another() -> None:
    slots = Slots(2)
    with slots.hold(1):
        with pytest.raises(OverloadedError):
            slots.check(1)
        slots.check(0)
    slots.check(1)


def test_who_finds_no_room_holds_none() -> None:
    slots = Slots(1)
    with pytest.raises(OverloadedError), slots.hold(1):
        pass
    slots.check(0)


@pytest.mark.parametrize(
    ("limit", "seconds", "pause"), [(1, 6.5, 7), (2, 6.5, 4), (64, 6.5, 1), (1, 0.001, 1), (1, 10_000, 600)]
)
def test_the_pause_is_until_one_of_the_runs_ends_in_whole_seconds(limit: int, seconds: float, pause: float) -> None:
    slots = Slots(limit)
    for _ in range(3):
        slots.ended(seconds)
    assert slots.pause() == pause
    with pytest.raises(OverloadedError) as refusal:
        slots.check(limit)
    assert refusal.value.retry_after == pause


def test_recent_runs_count_most() -> None:
    slots = Slots(1)
    slots.ended(100)
    for _ in range(60):
        slots.ended(3)
    assert slots.pause() == 4


def test_a_process_that_has_run_nothing_asks_for_a_second() -> None:
    assert Slots(1).pause() == 1
