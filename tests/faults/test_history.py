"""The checker finds what it is there to find: each broken promise, planted in a history that is otherwise sound."""

from __future__ import annotations

from typing import Any

import pytest
from tests.faults.history import Accepted, Cancel, Effect, History, Sighting, check

JOB = "0190b3c5-0000-7000-8000-000000000001"
OTHER = "0190b3c5-0000-7000-8000-000000000002"
NOW = 1_700_000_000.0
THEN = "2023-11-14T22:13:20Z"  # NOW in words


def log_of(*events: tuple[str, int], outputs: Any = None) -> list[dict[str, Any]]:
    """A log of events, each a type and an attempt."""
    return [
        {"seq": seq, "event_type": event_type, "attempt": attempt, "data": {"outputs": outputs}}
        for seq, (event_type, attempt) in enumerate(events, 1)
    ]


TWO_ATTEMPTS = (
    ("job_queued", 0),
    ("pipeline_started", 1),
    ("step_started", 1),
    ("attempt_lost", 1),
    ("pipeline_started", 2),
    ("step_started", 2),
    ("step_completed", 2),
    ("pipeline_completed", 2),
)
STARTED = TWO_ATTEMPTS[:3]


def job_of(**changed: Any) -> dict[str, Any]:
    job = {"job_id": JOB, "status": "completed", "attempt": 2, "last_seq": 8, "outputs": {"output": 4}}
    return job | {"completed_at": THEN, "max_attempts": 3, "error": None} | changed


@pytest.fixture
def history() -> History:
    """One job whose first attempt was lost."""
    return History(
        accepted=[Accepted(JOB, "first", NOW - 9, NOW - 9, {"output": 4})],
        sightings=[Sighting(JOB, "running", NOW - 5), Sighting(JOB, "completed", NOW + 1)],
        effects=[
            Effect(JOB, 1, 100, "begin", NOW - 8),
            Effect(JOB, 2, 101, "begin", NOW - 4),
            Effect(JOB, 2, 101, "end", NOW - 3),
        ],
        jobs={JOB: job_of()},
        events={JOB: log_of(*TWO_ATTEMPTS, outputs={"output": 4})},
        listed={JOB: "first"},
    )


def rules(history: History) -> list[str]:
    return [violation.rule for violation in check(history)]


def retell(history: History, *events: tuple[str, int], **changed: Any) -> None:
    """Give the job another log, and the record that goes with it."""
    history.events[JOB] = log_of(*events, outputs={"output": 4})
    history.jobs[JOB] = job_of(last_seq=len(events), **changed)


def test_a_history_that_keeps_all_promises_has_no_violation(history: History):
    assert check(history) == []


def test_a_job_that_is_gone_is_lost(history: History):
    del history.jobs[JOB]
    assert rules(history) == ["lost"]


def test_a_job_that_never_ends_is_lost(history: History):
    history.sightings.clear()
    retell(history, *TWO_ATTEMPTS[:-1], status="running", outputs=None)
    assert rules(history) == ["lost"]


def test_a_job_without_a_terminal_event_has_no_end(history: History):
    retell(history, *TWO_ATTEMPTS[:-1])
    assert rules(history) == ["one end"]


def test_two_terminal_events_are_one_too_many(history: History):
    retell(history, *TWO_ATTEMPTS, ("pipeline_completed", 2))
    assert rules(history) == ["one end"]


def test_two_different_ends_are_one_too_many(history: History):
    retell(history, *TWO_ATTEMPTS[:-1], ("pipeline_canceled", 2), ("pipeline_completed", 2))
    assert rules(history) == ["one end"]


def test_an_end_that_is_not_the_states_own_is_found(history: History):
    history.sightings.clear()
    retell(history, *TWO_ATTEMPTS, status="failed", outputs=None)
    assert rules(history) == ["one end", "failed"]


def test_an_event_after_the_end_is_found(history: History):
    retell(history, *TWO_ATTEMPTS, ("log", 2))
    assert rules(history) == ["after the end"]


def test_a_hole_in_the_numbers_is_found(history: History):
    del history.events[JOB][4]
    assert rules(history) == ["holes"]


def test_a_number_that_comes_twice_is_found(history: History):
    history.events[JOB][4]["seq"] = 4
    assert rules(history) == ["holes"]


def test_a_record_that_knows_of_more_events_than_the_log_is_found(history: History):
    history.jobs[JOB]["last_seq"] = 9
    assert rules(history) == ["holes"]


def test_a_write_of_an_attempt_that_another_has_followed_is_stale(history: History):
    retell(history, *TWO_ATTEMPTS[:6], ("log", 1), *TWO_ATTEMPTS[6:])
    assert set(rules(history)) == {"stale"}


def test_a_write_of_an_attempt_that_was_lost_is_stale_before_another_starts(history: History):
    retell(history, *TWO_ATTEMPTS[:4], ("output", 1), *TWO_ATTEMPTS[4:])
    assert rules(history) == ["stale"]


def test_an_attempt_that_starts_twice_is_stale(history: History):
    retell(history, *TWO_ATTEMPTS[:5], ("pipeline_started", 2), *TWO_ATTEMPTS[5:])
    assert rules(history) == ["stale"]


def test_an_attempt_that_is_lost_twice_is_stale(history: History):
    retell(history, *TWO_ATTEMPTS[:4], ("attempt_lost", 1), *TWO_ATTEMPTS[4:])
    assert rules(history) == ["stale"]


def test_a_log_that_is_ahead_of_the_record_is_stale(history: History):
    history.jobs[JOB]["attempt"] = 1
    assert set(rules(history)) == {"stale", "work"}


def test_a_cancel_of_a_job_that_lost_its_worker_is_sound(history: History):
    history.sightings.clear()
    history.cancels.append(Cancel(JOB, NOW - 6, "canceling"))
    end = (("cancellation_requested", 1), ("pipeline_canceled", 1))
    retell(history, *STARTED, ("attempt_lost", 1), *end, status="canceled", attempt=1, outputs=None)
    del history.effects[1:]
    assert check(history) == []


def test_a_job_that_ends_as_worker_lost_is_sound(history: History):
    history.sightings.clear()
    end = (("attempt_lost", 1), ("pipeline_failed", 1))
    error = {"code": "worker_lost"}
    retell(history, *STARTED, *end, status="failed", attempt=1, outputs=None, error=error, max_attempts=1)
    del history.effects[1:]
    assert check(history) == []
    history.jobs[JOB]["max_attempts"] = 3
    assert rules(history) == ["failed"], "it gave up too soon"


def test_a_failure_of_a_job_that_can_not_fail_is_found(history: History):
    history.sightings.clear()
    end = ("pipeline_failed", 2)
    retell(history, *TWO_ATTEMPTS[:-1], end, status="failed", outputs=None, error={"code": "step_failed"})
    assert rules(history) == ["failed"]


def test_a_cancel_that_was_accepted_and_not_carried_out_is_found(history: History):
    history.cancels.append(Cancel(JOB, NOW - 4, "canceling"))
    assert rules(history) == ["cancel"]


def test_a_cancel_that_was_refused_or_not_answered_may_end_either_way(history: History):
    history.cancels.append(Cancel(JOB, NOW - 4, None))
    assert check(history) == []


def test_a_cancel_that_nobody_asked_for_is_found(history: History):
    history.sightings.clear()
    end = (("cancellation_requested", 2), ("pipeline_canceled", 2))
    retell(history, *TWO_ATTEMPTS[:-1], *end, status="canceled", outputs=None)
    assert rules(history) == ["cancel"]


def test_another_jobs_result_is_found(history: History):
    history.jobs[JOB]["outputs"] = {"output": 9}
    assert rules(history) == ["result"]


def test_a_last_event_that_tells_another_result_is_found(history: History):
    history.events[JOB][-1]["data"]["outputs"] = {"output": 9}
    assert rules(history) == ["result"]


def test_a_canceled_job_with_outputs_is_found(history: History):
    history.sightings.clear()
    history.cancels.append(Cancel(JOB, NOW - 6, "canceling"))
    end = (("cancellation_requested", 2), ("pipeline_canceled", 2))
    retell(history, *TWO_ATTEMPTS[:-1], *end, status="canceled")
    assert rules(history) == ["result"]


def test_a_terminal_state_that_changes_between_two_looks_is_found(history: History):
    history.sightings[0] = Sighting(JOB, "failed", NOW - 1)
    assert rules(history) == ["changed"]


def test_a_terminal_state_that_is_alive_again_is_found(history: History):
    history.sightings.insert(0, Sighting(JOB, "completed", NOW - 6))
    assert rules(history) == ["changed"]


def test_a_terminal_state_that_changes_after_the_last_look_is_found(history: History):
    history.sightings[-1] = Sighting(JOB, "canceled", NOW + 1)
    assert rules(history) == ["changed"]


def test_two_jobs_of_one_request_are_doubled(history: History):
    history.listed[OTHER] = "first"
    assert rules(history) == ["doubled"]


def test_a_request_that_is_answered_with_two_jobs_is_doubled(history: History):
    history.accepted.append(Accepted(OTHER, "first", NOW, NOW, None))
    history.jobs[OTHER] = job_of(job_id=OTHER)
    history.events[OTHER] = log_of(*TWO_ATTEMPTS)
    assert rules(history) == ["doubled"]


def test_two_requests_that_are_answered_with_one_job_are_doubled(history: History):
    history.accepted.append(Accepted(JOB, "second", NOW, NOW, {"output": 4}))
    assert "doubled" in rules(history)


def test_one_request_that_is_answered_twice_with_its_job_is_sound(history: History):
    history.accepted.append(Accepted(JOB, "first", NOW, NOW, {"output": 4}))
    assert check(history) == []


def test_work_that_nobody_asked_for_is_foreign(history: History):
    history.effects.append(Effect(OTHER, 1, 100, "begin", NOW))
    assert rules(history) == ["foreign"]


def test_an_attempt_that_ran_twice_is_found(history: History):
    history.effects.append(Effect(JOB, 2, 102, "begin", NOW - 4))
    assert rules(history) == ["work"]


def test_an_attempt_that_the_record_does_not_know_is_found(history: History):
    history.effects.append(Effect(JOB, 3, 102, "begin", NOW + 4))
    assert rules(history) == ["work"]


def test_a_job_that_works_on_after_it_is_canceled_is_found_unless_its_process_was_frozen(history: History):
    history.sightings.clear()
    history.cancels.append(Cancel(JOB, NOW - 6, "canceling"))
    end = (("cancellation_requested", 2), ("pipeline_canceled", 2))
    retell(history, *TWO_ATTEMPTS[:-1], *end, status="canceled", outputs=None)
    history.effects[-1] = Effect(JOB, 2, 101, "end", NOW + 0.5)
    assert rules(history) == ["work"]
    history.frozen = True
    assert check(history) == []
