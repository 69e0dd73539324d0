"""Each switch of ``Capture`` is real in every sink: switched off, what it is about is found nowhere."""

from __future__ import annotations

import pytest
from tests.capture.places import places
from tests.capture.planted import MARKS, PARAMETERS, planted

from pipeserve import Capture

pytestmark = pytest.mark.e2e  # each runs the service over an own store


def found(marks: dict[str, str], *texts: bytes) -> dict[str, str]:
    """Those of the marks that stand in any of the texts."""
    return {way: mark for way, mark in marks.items() if any(mark.encode() in text for text in texts)}


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_with_all_switches_on_every_mark_is_found(mode: str, store_url: str) -> None:
    async with places(planted(Capture()), store_url) as around:
        job_id, _ = await around.call(PARAMETERS, mode=mode)
        everything = await around.everything(job_id)
    for switch, marks in MARKS.items():
        for place in ("store", "routes"):
            assert found(marks, everything[place]) == marks, (switch, place)
    assert found(MARKS["logs"], everything["process"]) == MARKS["logs"]


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("switch", ["logs", "metadata", "visualizations", "code"])
async def test_with_a_switch_off_none_of_its_marks_is_found(switch: str, mode: str, store_url: str) -> None:
    async with places(planted(Capture(**{switch: False})), store_url) as around:
        job_id, answer = await around.call(PARAMETERS, mode=mode)
        everything = await around.everything(job_id)
    for place, text in everything.items():
        assert found(MARKS[switch], text) == {}, place
    assert found(MARKS[switch], answer.content) == {}
    for other, marks in MARKS.items():
        if other != switch:
            assert found(marks, everything["store"]) == marks, other
