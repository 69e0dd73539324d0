"""Where a reader says that it is: any text is answered, and from any real position every event comes once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.api.harness import frames
from tests.fuzz.pipelines import talkative
from tests.fuzz.running import LONG, Running, examples, running

from pipeserve.errors import BadRequestError
from pipeserve.events import EventType
from pipeserve_api.positions import Positions, event_number

pytestmark = LONG

TYPES = [event_type.value for event_type in EventType]
HEADER = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30).map(str.strip)
POSITION = st.one_of(
    HEADER,
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(["", "0", "-0", "+1", "1.0", "1e3", "0x1", "1_0", "9" * 15, "9" * 16, "9" * 4000, "null", "007"]),
    st.tuples(st.text("0123456789abcdef", max_size=7), st.lists(st.integers(-1, 30).map(str), max_size=4)).map(
        lambda parts: f"{parts[0]}:{'.'.join(parts[1])}"
    ),
)
FILTER = st.lists(st.sampled_from([*TYPES, "", " ", "nothing"]) | st.text(max_size=8), max_size=4).map(",".join)


@dataclass(frozen=True)
class Told:
    """A service with jobs that have ended, and what their logs hold."""

    running: Running
    logs: dict[str, list[dict[str, Any]]]

    @property
    def job_ids(self) -> list[str]:
        """In the order in which they were submitted."""
        return list(self.logs)

    def stream(self, path: str, position: str | None, as_header: bool, **query: Any) -> list[dict[str, str]]:
        """The blocks of a stream from ``position``; none where all was read."""
        headers = {"Last-Event-ID": position} if position is not None and as_header else {}
        params = query | ({"after": position} if position is not None and not as_header else {})
        answer = self.running.request("GET", path, params=params, headers=headers)
        assert answer.status_code in (200, 204), answer.text
        assert answer.text.startswith("retry: ") or answer.status_code == 204
        return [block for block in frames(answer.text) if "id" in block]


@pytest.fixture
def told(store_url: str) -> Iterator[Told]:
    with running(talkative, store_url) as service:
        logs: dict[str, list[dict[str, Any]]] = {}
        for lines, mode in ((9, "sync"), (0, "async"), (21, "async")):
            body = {"parameters": {"lines": lines}}
            job_id = service.request("POST", "/invoke", params={"mode": mode}, json=body).json()["job_id"]
            job = service.request("GET", f"/jobs/{job_id}", params={"wait": 10}).json()
            assert job["status"] == "completed"
            logs[job_id] = service.request("GET", f"/jobs/{job_id}/events").json()["events"]
            assert [event["seq"] for event in logs[job_id]] == list(range(1, job["last_seq"] + 1))
        yield Told(service, logs)


def check_refusal(answer: Any) -> None:
    """It was answered, or refused in the words of the documentation."""
    if answer.status_code in (200, 204):
        return
    assert answer.status_code in (400, 404, 422), answer.text
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["code"] in ("bad_request", "not_found", "invalid_parameters")


def test_a_position_of_any_text_is_answered(told: Told) -> None:
    first = told.job_ids[0]
    paths = [f"/stream/{first}", f"/jobs/{first}/events", f"/jobs/{first}/logs", f"/events?job={first}"]

    @examples(200)
    @given(
        st.sampled_from(paths), POSITION | st.none(), st.text(max_size=10) | POSITION | st.none(), FILTER | st.none()
    )
    def one(path: str, header: str | None, after: str | None, types: str | None) -> None:
        query = {name: value for name, value in (("after", after), ("types", types)) if value is not None}
        if path.startswith("/events"):
            query["job"] = first
        headers = {} if header is None else {"Last-Event-ID": header}
        check_refusal(told.running.request("GET", path.partition("?")[0], params=query, headers=headers))

    one()


def test_from_any_number_all_that_follows_comes_once_and_in_order(told: Told) -> None:
    @examples(120)
    @given(
        st.integers(0, 2),
        st.integers(0, 40),
        st.booleans(),
        st.none() | st.lists(st.sampled_from(TYPES), min_size=1, max_size=3),
    )
    def one(which: int, after: int, as_header: bool, types: list[str] | None) -> None:
        job_id = told.job_ids[which]
        query = {} if types is None else {"types": ",".join(types)}
        found = told.stream(f"/stream/{job_id}", str(after), as_header, **query)
        events = [json.loads(block["data"]) for block in found if "data" in block]
        wanted = [
            event for event in told.logs[job_id] if event["seq"] > after and (not types or event["event_type"] in types)
        ]
        assert events == wanted
        if after < len(told.logs[job_id]):
            assert found[-1]["id"] == str(len(told.logs[job_id])), "the end is told by its id"
        page = told.running.request("GET", f"/jobs/{job_id}/events", params={"after": after, **query}).json()
        assert page["events"] == wanted
        assert page["done"]

    one()


def test_a_reader_of_several_jobs_who_breaks_off_anywhere_misses_and_repeats_nothing(told: Told) -> None:
    @examples(60)
    @given(st.permutations(told.job_ids), st.integers(1, 3), st.lists(st.integers(0, 45), max_size=4), st.booleans())
    def one(order: list[str], most: int, stops: list[int], as_header: bool) -> None:
        jobs, position, read = order[:most], None, []
        for stop in [*stops, None]:
            blocks = told.stream("/events", position, as_header, job=jobs)[:stop]
            read += [json.loads(block["data"]) for block in blocks if "data" in block]
            position = blocks[-1]["id"] if blocks else position
        for job_id in jobs:
            assert [event for event in read if event["job_id"] == job_id] == told.logs[job_id]
        assert len(read) == sum(len(told.logs[job_id]) for job_id in jobs)

    one()


@examples(400)
@given(POSITION | st.text(max_size=20), st.lists(st.text(max_size=4), min_size=1, max_size=3))
@example("٣", ["a"])
def test_a_text_is_a_position_or_refused(text: str, job_ids: list[str]) -> None:
    try:
        number = event_number(text)
    except BadRequestError:
        pass
    else:
        assert number is None or 0 <= number < 10**15
    try:
        positions = Positions.read(text, job_ids)
    except BadRequestError:
        return
    assert positions is None or Positions.read(str(positions), job_ids) is not None


@examples(400)
@given(st.lists(st.tuples(st.text(max_size=6), st.integers(0, 10**15 - 1)), min_size=1, max_size=5), st.randoms())
def test_a_position_is_read_back_for_the_same_jobs_in_the_same_order(jobs: list[tuple[str, int]], random: Any) -> None:
    job_ids, numbers = [job_id for job_id, _ in jobs], [number for _, number in jobs]
    text = str(Positions(job_ids, numbers))
    again = Positions.read(text, job_ids)
    assert again is not None
    assert again.numbers == numbers
    mixed = random.sample(job_ids, len(job_ids))
    if mixed != job_ids:
        with pytest.raises(BadRequestError):
            Positions.read(text, mixed)
