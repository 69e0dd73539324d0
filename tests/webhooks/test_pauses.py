"""How long a receiver is left alone."""

from __future__ import annotations

import pytest

from pipeserve.webhooks.pauses import LONGEST_ASKED, PAUSES, pause_after


def test_pauses_grow_and_then_stay() -> None:
    for failures, planned in enumerate([*PAUSES, PAUSES[-1], PAUSES[-1]], start=1):
        for _ in range(100):
            assert 0.8 * planned <= pause_after(failures, None) <= 1.2 * planned


def test_jobs_that_failed_together_come_back_apart() -> None:
    assert len({pause_after(1, None) for _ in range(100)}) > 50


@pytest.mark.parametrize(("asked", "pause"), [(600.0, 600.0), (1e9, LONGEST_ASKED)])
def test_a_receiver_may_ask_for_a_longer_pause_up_to_an_hour(asked: float, pause: float) -> None:
    assert pause_after(1, asked) == pause


def test_a_receiver_can_not_ask_for_a_shorter_one() -> None:
    assert pause_after(3, 0.0) >= 0.8 * PAUSES[2]
