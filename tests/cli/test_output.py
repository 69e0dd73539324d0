from __future__ import annotations

import pytest

from pipeserve.cli.output import describe_event
from pipeserve.events import Event, EventType


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("worker_died", "its worker was lost"),
        ("lease_expired", "its worker was lost"),
        ("drained", "its worker was stopped; it goes on elsewhere"),
    ],
)
def test_an_attempt_that_was_handed_over_is_told_apart_from_one_that_was_lost(reason: str, words: str) -> None:
    event = Event(EventType.ATTEMPT_LOST, "j", 1, data={"reason": reason})
    assert describe_event(event) == f"  pipeline: {words}"
