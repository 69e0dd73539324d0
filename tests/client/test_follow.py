from __future__ import annotations

import logging

import pytest
from tests.client.conftest import Canned, canned, job, problem, sse

from pipeserve.client._follow import EventFollower, HoleError
from pipeserve.client._poll import EARLY_REPLY_DELAY, JobPoll
from pipeserve.client._protocol import Reply
from pipeserve.client._retries import LONGEST_DELAY, Retries
from pipeserve.client.errors import UnexpectedReplyError, UnreachableError


def reply(canned: Canned) -> Reply:
    headers = {"content-type": canned.content_type, **canned.headers}
    return Reply(canned.status, headers, b"".join(canned.chunks))


def test_the_first_request_names_no_position_and_a_later_one_names_the_last_event() -> None:
    follower = EventFollower("j")
    assert "Last-Event-ID" not in follower.request().headers
    list(follower.feed(sse(1, 2)))
    assert follower.request().headers["Last-Event-ID"] == "2"


def test_a_snapshot_is_passed_over_and_a_repeated_event_is_dropped() -> None:
    follower = EventFollower("j")
    events = follower.feed(b'event: snapshot\ndata: {"status":"running"}\n\n' + sse(1, 2) + sse(2, 3))
    assert [event.seq for event in events] == [1, 2, 3]


def test_the_terminal_event_ends_it_and_what_follows_is_not_read() -> None:
    follower = EventFollower("j")
    events = list(follower.feed(sse(1, 2, last="pipeline_completed") + sse(3)))
    assert [event.seq for event in events] == [1, 2]
    assert follower.done


def test_a_hole_is_an_error_after_the_events_before_it() -> None:
    follower = EventFollower("j")
    events = follower.feed(sse(1, 2, 4))
    assert [next(events).seq, next(events).seq] == [1, 2]
    with pytest.raises(HoleError, match="event 4 follows event 2"):
        next(events)
    assert follower.request().headers["Last-Event-ID"] == "2"


def test_a_gap_that_the_service_declares_is_told_and_passed(caplog: pytest.LogCaptureFixture) -> None:
    follower = EventFollower("j", after=2)
    gap = b'event: gap\ndata: {"from": 3, "to": 9, "reason": "trimmed"}\n\n'
    with caplog.at_level(logging.WARNING, "pipeserve.client"):
        assert [event.seq for event in follower.feed(gap + sse(10))] == [10]
    assert "events 3 to 9 are gone: trimmed" in caplog.text


def test_data_that_is_no_event_is_refused() -> None:
    with pytest.raises(UnexpectedReplyError, match="no event"):
        list(EventFollower("j").feed(b"data: hello\n\n"))


def test_204_says_that_everything_was_read() -> None:
    follower = EventFollower("j", after=7)
    follower.refused(Reply(204, {}, b""))
    assert follower.done


def test_the_service_decides_how_soon_a_follower_comes_back() -> None:
    follower = EventFollower("j")
    list(follower.feed(b"retry: 3000\n\n" + sse(1)))
    assert follower.lost() == 3.0
    assert follower.refused(reply(problem(503, "draining", retry_after="7", retryable=True))) == 7.0


def test_retries_wait_longer_each_time_and_end_and_progress_starts_anew() -> None:
    cause = UnreachableError("gone")
    retries = Retries(limit=3)
    delays = [retries.failed(cause) for _ in range(3)]
    assert delays == sorted(delays)
    assert delays[0] < delays[-1] <= LONGEST_DELAY
    with pytest.raises(UnreachableError, match="gone"):
        retries.failed(cause)
    retries.progressed()
    assert retries.failed(cause) == delays[0]


def test_a_poll_that_is_answered_early_does_not_ask_again_at_once() -> None:
    now = 0.0
    poll = JobPoll("j", None, clock=lambda: now)
    poll.request()
    assert poll.answered(reply(canned(job("running")))) == EARLY_REPLY_DELAY
    poll.request()
    now += 100
    assert poll.answered(reply(canned(job("running")))) == 0.0


def test_a_poll_never_asks_the_service_to_wait_past_the_callers_timeout() -> None:
    now = 0.0
    poll = JobPoll("j", 3.0, clock=lambda: now)
    assert poll.request().path == "/jobs/j?wait=3"
    now = 2.5
    assert poll.request().path == "/jobs/j?wait=0.5"
    now = 3.0
    with pytest.raises(TimeoutError, match=r"job j has not ended within 3 s; its status is running"):
        poll.answered(reply(canned(job("running"))))
