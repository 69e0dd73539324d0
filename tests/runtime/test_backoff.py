from __future__ import annotations

import pytest

from pipeserve.runtime.backoff import Backoff


def test_delays_double_up_to_the_limit_and_are_shortened_by_at_most_a_half():
    backoff = Backoff(0.1, 0.5)
    for full in (0.1, 0.2, 0.4, 0.5, 0.5):
        assert full / 2 <= backoff.next() <= full


def test_a_reset_begins_again():
    backoff = Backoff(0.1, 10)
    for _ in range(5):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 0.1


@pytest.mark.parametrize(("first", "limit"), [(0, 1), (2, 1)])
def test_delays_that_make_no_sense_are_refused(first: float, limit: float):
    with pytest.raises(ValueError, match="need 0 < first <= limit"):
        Backoff(first, limit)
