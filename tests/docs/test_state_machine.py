"""The page on the states of a job says what the code has: every state, every end with its event, every way back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeserve.events import TERMINAL_EVENTS, EventType
from pipeserve.jobs import TERMINAL_EVENT_OF, JobStatus

PAGE = (Path(__file__).parents[2] / "docs" / "state_machine.md").read_text()
DRAWING = re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0]


def moves() -> list[tuple[set[str], set[str], set[str]]]:
    """From which states, to which, with which events: a row of the table each."""
    section = PAGE.split("\n## Moves\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    return [(words(row[0]), words(row[1]), words(row[4])) for row in rows]


def words(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def test_the_table_names_no_other_states_and_events_than_there_are() -> None:
    states = {state for before, after, _ in moves() for state in before | after}
    events = {event for *_, said in moves() for event in said}
    assert states == set(JobStatus)
    assert events <= set(EventType)


def test_the_table_names_every_event_that_ends_a_job_or_gives_it_back() -> None:
    said = {event for *_, events in moves() for event in events}
    assert said >= {*TERMINAL_EVENTS, EventType.ATTEMPT_LOST, EventType.JOB_QUEUED, EventType.CANCELLATION_REQUESTED}


@pytest.mark.parametrize("state", JobStatus)
def test_every_state_is_drawn(state: JobStatus) -> None:
    assert re.search(rf"\b{state}\b", DRAWING)


def test_no_move_leaves_an_end_and_every_other_state_can_be_left() -> None:
    left = {state for before, _, _ in moves() for state in before}
    assert left == {state for state in JobStatus if not state.terminal}


@pytest.mark.parametrize(("state", "event"), TERMINAL_EVENT_OF.items())
def test_a_move_to_an_end_has_that_ends_event_and_no_other_end(state: JobStatus, event: EventType) -> None:
    to_it = [said for _, after, said in moves() if after == {state}]
    assert to_it
    for said in to_it:
        assert said & TERMINAL_EVENTS == {event}


def test_a_move_back_is_a_lost_attempt_and_ends_nothing() -> None:
    back = [said for before, after, said in moves() if JobStatus.RUNNING in before and after == {JobStatus.PENDING}]
    assert back
    assert all(said == {EventType.ATTEMPT_LOST} for said in back)
