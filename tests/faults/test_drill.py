"""``make drill`` over a service that runs, as an operator would start it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import orjson
import pytest
from tests.faults import drill
from tests.faults.installation import PIPELINES
from tests.service import ROOT, ServeFixture

pytestmark = pytest.mark.e2e


def drilled(arguments: list[str]) -> int:
    """The exit code of a drill."""
    return asyncio.run(drill.main(arguments))


def test_a_drill_over_a_running_service_reports_and_the_service_shows_it(serve: ServeFixture, tmp_path: Path):
    with serve(f"{PIPELINES}:drill", workers=3) as service:
        reports = tmp_path / "drills"
        arguments = ["--url", service.url, "--minutes", "0.5", "--kills", "4", "--reports", str(reports)]
        assert drilled([*arguments, "--seed", "7", "--clients", "6"]) == 0
        [page], [whole] = list(reports.glob("*.md")), list(reports.glob("*.json"))
        figures = orjson.loads(whole.read_bytes())
        shown = httpx.get(service.url + "/status").json()["last_drill"]
    assert (figures["lost"], figures["doubled"], figures["violations"]) == (0, 0, 0)
    assert figures["kills"] == {"worker": 4}
    assert len(figures["kills_in_order"]) == 4
    assert figures["jobs"] > 0
    assert "| lost | 0 |" in page.read_text()
    for name in ("jobs", "kills", "lost", "doubled", "recovery", "cancel", "seed", "statuses"):
        assert shown[name] == figures[name]


def test_a_drill_over_another_pipeline_must_be_told_what_to_submit(
    serve: ServeFixture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with serve(f"{ROOT / 'examples' / 'quickstart.py'}:quickstart", workers=2) as service:
        over = ["--url", service.url, "--minutes", "0.2", "--kills", "1", "--reports", str(tmp_path)]
        assert drilled(over) == 2
        assert not list(tmp_path.iterdir())
        assert drilled([*over, "--params", '{"topic": "drills"}']) == 2
        assert "does not take what is submitted: HTTP 422" in capsys.readouterr().err
        assert drilled([*over, "--params", '{"text": "The same words, over and over."}']) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_drill_over_a_service_that_is_not_there_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert drilled(["--url", "http://127.0.0.1:9", "--reports", str(tmp_path)]) == 2
    assert "no usable answer from http://127.0.0.1:9" in capsys.readouterr().err
