"""What steps print and log: the route that answers it, and how much of it is kept."""

from __future__ import annotations

import logging
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.api.harness import Served, serving
from tests.api.worker import working

from pipeserve import Capture, Pipeline, get_context, pipeline, step
from pipeserve.events import Event
from pipeserve.sdk.lines import LONGEST
from pipeserve.settings import RuntimeSettings
from pipeserve.testing import run_pipeline_async

_log = logging.getLogger("tests.logs")
LIMIT = RuntimeSettings.from_environment().log_limit


def speaking(speak: Callable[[], object], capture: Capture | None = None) -> Pipeline[..., Any]:
    """A pipeline whose one step calls ``speak``."""

    @step
    def talk() -> int:
        speak()
        return 1

    @pipeline(capture=capture)
    def serve() -> int:
        return talk()

    return serve


async def lines_of(speak: Callable[[], object]) -> list[Event]:
    run = await run_pipeline_async(speaking(speak))
    run.raise_for_status()
    return [event for event in run.events if event.event_type == "log"]


def three_lines() -> None:
    print("first")
    _log.warning("second\nof two lines")
    print("third", file=sys.stderr)


async def logs(served: Served, job_id: str, **query: Any) -> dict[str, Any]:
    answer = await served.http.get(f"/jobs/{job_id}/logs", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


# ---- the route


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_the_route_answers_a_jobs_lines(mode: str) -> None:
    async with serving(speaking(three_lines)) as served, working(served):
        job_id = (await served.invoke(mode=mode)).json()["job_id"]
        await served.http.get(f"/jobs/{job_id}", params={"wait": 5})
        page = await logs(served, job_id)
        text = await served.http.get(f"/jobs/{job_id}/logs", params={"format": "text"})
    assert page["done"]
    assert [(line["level"], line["logger"], line["message"]) for line in page["logs"]] == [
        ("info", "print", "first"),
        ("warning", "tests.logs", "second\nof two lines"),
        ("info", "stderr", "third"),
    ]
    for line in page["logs"]:
        assert (line["step_name"], line["attempt"], line["cut"]) == ("talk", 1, False)
        assert line["timestamp"].endswith("Z")
    assert text.headers["content-type"].startswith("text/plain")
    first, second, continued, third = text.text.splitlines()
    assert first.endswith("INFO     talk print: first")
    assert second.endswith("WARNING  talk tests.logs: second")
    assert continued == "    of two lines"
    assert third.endswith("INFO     talk stderr: third")


async def test_the_route_answers_page_by_page() -> None:
    async with serving(speaking(three_lines)) as served:
        job_id = (await served.invoke()).json()["job_id"]
        messages: list[str] = []
        after, done = 0, False
        while not done:
            page = await logs(served, job_id, after=after, limit=2)
            assert len(page["logs"]) <= 2
            messages += [line["message"] for line in page["logs"]]
            after, done = page["next"], page["done"]
        text = await served.http.get(f"/jobs/{job_id}/logs", params={"format": "text", "limit": 2})
    assert messages == ["first", "second\nof two lines", "third"]
    assert 'rel="next"' in text.headers["link"]


async def test_the_route_refuses_what_it_does_not_know() -> None:
    async with serving(speaking(three_lines)) as served:
        assert (await served.http.get("/jobs/0190c0de-0000-7000-8000-000000000000/logs")).status_code == 404
        job_id = (await served.invoke()).json()["job_id"]
        for wrong in ({"limit": 0}, {"format": "xml"}, {"after": -1}):
            assert (await served.http.get(f"/jobs/{job_id}/logs", params=wrong)).status_code == 422


async def test_without_logs_the_route_answers_none() -> None:
    async with serving(speaking(three_lines, Capture(logs=False))) as served:
        job_id = (await served.invoke()).json()["job_id"]
        page = await logs(served, job_id)
    assert page["logs"] == []
    assert page["done"]


# ---- how much is kept


async def test_a_long_line_is_cut_and_says_so() -> None:
    def speak() -> None:
        print("x" * (LONGEST + 100))
        print("y" * LONGEST)
        _log.warning("ö" * LONGEST)

    cut, whole, by_bytes = await lines_of(speak)
    assert cut.message == "x" * LONGEST + "…"
    assert cut.data == {"logger": "print", "cut": True}
    assert whole.message == "y" * LONGEST
    assert "cut" not in whole.data
    assert by_bytes.message == "ö" * (LONGEST // 2) + "…"


async def test_past_its_limit_a_run_says_once_that_its_logs_are_cut_and_how_much_more_there_was() -> None:
    def speak() -> None:
        for _ in range(4000):
            print("z" * 999)

    found = await lines_of(speak)
    *kept, cut, more = found
    assert sum(len(event.message or "") for event in kept) <= LIMIT
    assert len(kept) == LIMIT // 999
    assert (cut.level, cut.step_name, cut.data) == ("warning", "talk", {"logger": "pipeserve", "cut": True})
    assert more.data["bytes"] == (4000 - len(kept)) * 999 + (4000 - len(kept) - 1)  # with their line ends but one
    assert more.message is not None
    assert str(more.data["bytes"]) in more.message


async def test_empty_lines_do_not_fill_a_log() -> None:
    found = await lines_of(lambda: print("\n" * 1_000_000))
    assert len(found) <= LIMIT // 32 + 2


async def test_an_open_line_is_told_when_the_step_ends_and_a_progress_bar_by_its_returns() -> None:
    def speak() -> None:
        sys.stderr.write("\r 10%")
        sys.stderr.write("\r100%\n")
        sys.stdout.write("a\r\nb\r")
        sys.stdout.write("\nc")

    found = [(event.data["logger"], event.message) for event in await lines_of(speak)]
    assert found == [("stderr", " 10%"), ("stderr", "100%"), ("print", "a"), ("print", "b"), ("print", "c")]


MEGABYTE = 1_000_000
FLOODS: dict[str, Callable[[], object]] = {
    "lines": lambda: [print("x" * 999) for _ in range(100_000)],
    "pieces without a line end": lambda: [print("x" * 10_000, end="") for _ in range(10_000)],
    "one write of lines": lambda: print(("x" * 99 + "\n") * MEGABYTE),
    "one write without a line end": lambda: print("x" * 100 * MEGABYTE),
    "log records": lambda: [_log.warning("x" * 10_000) for _ in range(10_000)],
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_step_that_writes_100_megabytes_is_bounded(flood: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open("w") as nowhere:  # noqa: ASYNC230 - it never blocks
        monkeypatch.setattr(sys, "stdout", nowhere)
        monkeypatch.setattr(logging, "lastResort", None)
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        peaks: list[int] = []

        def speak() -> None:
            if not flood.startswith("one write"):  # their text alone is 100 MB
                tracemalloc.start()
            try:
                FLOODS[flood]()
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()

        found = await lines_of(speak)
    assert sum(len(event.message or "") for event in found) < LIMIT + LONGEST
    assert peaks[0] < 60 * MEGABYTE  # the events of one run's limit, twice over


# ---- whose they are


async def test_what_the_service_itself_logs_in_a_step_is_no_line_of_the_job(caplog: pytest.LogCaptureFixture) -> None:
    def speak() -> None:
        logging.getLogger("pipeserve.runtime").warning("of the service")
        logging.getLogger("pipeserver").warning("of the step")

    with caplog.at_level(logging.INFO):
        found = await lines_of(speak)
        await run_pipeline_async(speaking(speak, Capture(logs=False)))
    assert [event.message for event in found] == ["of the step"]
    assert [record.message for record in caplog.records if record.message.startswith("of the")] == [
        "of the service",
        "of the step",
        "of the service",
    ]


async def test_a_handler_sees_where_it_is_and_what_it_writes_is_no_second_line() -> None:
    seen: list[str] = []

    class Noting(logging.StreamHandler[Any]):
        def format(self, record: logging.LogRecord) -> str:
            seen.append(str(get_context().step_name))
            return super().format(record)

    def speak() -> None:
        handler = Noting()  # its stream is stderr as it is in the step
        _log.addHandler(handler)
        try:
            _log.warning("once")
        finally:
            _log.removeHandler(handler)

    assert [(event.message, event.data["logger"]) for event in await lines_of(speak)] == [("once", "tests.logs")]
    assert seen == ["talk"]


async def test_a_record_whose_arguments_do_not_fit_fails_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])  # pytest's would raise
    [found] = await lines_of(lambda: _log.warning("%d of them", "many"))
    assert found.message is not None
    assert found.message.startswith("%d of them")
