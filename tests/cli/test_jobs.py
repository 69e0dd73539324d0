"""``pipeserve jobs`` against a service of canned replies."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import COMMAND, Finished, Pipeserve, environment
from tests.client.conftest import CannedService, canned, canned_server, job, problem, service, sse, stream

__all__ = ["canned_server", "service"]  # fixtures

pytestmark = pytest.mark.e2e

LOST = {"type": "t", "title": "t", "status": 500, "detail": "its worker died", "code": "worker_lost"}
UNKNOWN = problem(404, "not_found", detail="There is no job 'j' here. It never was, or its record has expired.")


def page(*jobs: dict[str, Any], cursor: str | None = None) -> Any:
    return canned({"jobs": list(jobs), "total": len(jobs), "next_cursor": cursor})


def lost(job_id: str) -> dict[str, Any]:
    return job("failed", job_id=job_id, run_name=f"run {job_id}", error=LOST, execution_time=1.5)


def on_a_terminal(tmp_path: Path, *arguments: str, types: bytes = b"", columns: int = 80) -> Finished:
    """Run the command with a terminal for all of input and output; ``types`` is what its user types."""
    ours, theirs = pty.openpty()
    env = environment(tmp_path / "data", {"COLUMNS": str(columns), "TERM": "xterm"})
    process = subprocess.Popen([*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    os.write(ours, types)
    said = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux: nobody has the other end any more
            break
        if not chunk:
            break
        said += chunk
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;]*m", "", said.decode()).replace("\r\n", "\n")
    return Finished(process.wait(), text, text)


# list


async def test_list_prints_a_line_for_each_job_and_asks_for_what_is_wanted(
    service: CannedService, pipeserve: Pipeserve
) -> None:
    service.answer("GET /jobs", page(lost("2"), job("failed", job_id="1")))
    filters = ("--status", "failed", "--code", "worker_lost", "--label", "tenant=a", "--label", "b=c=d")
    done = await pipeserve("jobs", "list", *filters, "--limit", "5", "--url", service.url, "--api-key", "k")
    assert done.code == 0, done.err
    first, second = (line.split("\t") for line in done.out.splitlines())
    assert [first[at] for at in (0, 1, 2, 3, 5)] == ["2", "failed", "worker_lost", "run 2", "1.500 s"]
    assert [second[at] for at in (0, 2, 5)] == ["1", "-", "-"]
    assert service.received[0].query == "status=failed&code=worker_lost&label.tenant=a&label.b=c%3Dd&limit=6"
    assert service.received[0].headers["authorization"] == "Bearer k"


async def test_list_as_json_has_the_whole_records_up_to_the_limit(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer("GET /jobs", page(lost("3"), lost("2"), lost("1"), cursor="c"))
    listed = (await pipeserve("jobs", "list", "--json", "--limit", "2", "--url", service.url)).json
    assert [(entry["job_id"], entry["error"]["code"]) for entry in listed] == [
        ("3", "worker_lost"),
        ("2", "worker_lost"),
    ]


async def test_list_of_nothing_prints_nothing(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer("GET /jobs", page())
    done = await pipeserve("jobs", "list", "--url", service.url)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (await pipeserve("jobs", "list", "--json", "--url", service.url)).json == []


async def test_on_a_terminal_list_draws_a_table_and_says_whether_there_is_more(
    service: CannedService, tmp_path: Path
) -> None:
    created = (datetime.now(UTC) - timedelta(days=3.5)).isoformat()
    named = lost("b" * 36) | {"run_name": "[red]run", "created_at": created}
    service.answer("GET /jobs", page(named, lost("a" * 36), cursor="c"))
    wide = on_a_terminal(tmp_path, "jobs", "list", "--limit", "1", "--url", service.url, columns=120)
    head, row, more = wide.out.splitlines()
    assert head.split() == ["id", "status", "code", "age", "took", "name"]
    assert row.split() == ["b" * 36, "failed", "worker_lost", "3", "d", "1.500", "s", "[red]run"]
    assert "There are more" in more
    assert wide.code == 0


async def test_on_a_narrow_terminal_all_but_the_name_is_there_in_full(service: CannedService, tmp_path: Path) -> None:
    service.answer("GET /jobs", page(lost("b" * 36)))
    head, row = on_a_terminal(tmp_path, "jobs", "list", "--url", service.url).out.splitlines()
    assert head.split() == ["id", "status", "code", "age", "took"]
    assert ("b" * 36 in row, "worker_lost" in row, row.rstrip().endswith("1.500 s")) == (True, True, True)


# one job


async def test_show_tells_what_is_set_and_leaves_out_what_is_not(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer("GET /jobs/j", canned(job("failed", error=LOST, attempt=3, max_attempts=3, labels={"a": "b"})))
    done = await pipeserve("jobs", "show", "j", "--url", service.url)
    said = dict(line.split(":", 1) for line in done.out.splitlines())
    assert (said["status"].strip(), said["attempt"].strip(), said["labels"].strip()) == ("failed", "3 of 3", "a=b")
    assert said["error"].strip() == "worker_lost: its worker died"
    assert "outputs" not in said
    assert (await pipeserve("jobs", "show", "j", "--json", "--url", service.url)).json["attempt"] == 3


async def test_show_of_a_job_that_waits_tells_its_place_and_its_expected_end(
    service: CannedService, pipeserve: Pipeserve
) -> None:
    service.answer("GET /jobs/j", canned(job("pending", queue_position=0, eta={"p50": 1.5, "p90": 4}, priority=3)))
    said = (await pipeserve("jobs", "show", "j", "--url", service.url)).out.splitlines()
    for line in ("queue position: 0", "expected end:   in 1.5 s; nine in ten within 4 s", "priority:       3"):
        assert line in said


async def test_watch_tells_the_events_and_exits_as_the_job_ends(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer("GET /stream/j", stream(sse(1, 2, last="pipeline_failed")))
    service.answer("GET /jobs/j", canned(job("failed", error=LOST)))
    done = await pipeserve("jobs", "watch", "j", "--url", service.url)
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines() == ["job j", "  pipeline: done", "pipeserve: its worker died"]


async def test_cancel_tells_the_state(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer("POST /jobs/j/cancel", canned({"job_id": "j", "status": "canceling"}, 202))
    done = await pipeserve("jobs", "cancel", "j", "--reason", "too slow", "--url", service.url)
    assert (done.code, done.out) == (0, "canceling\n")
    assert service.received[0].query == "reason=too+slow"
    as_json = await pipeserve("jobs", "cancel", "j", "--json", "--url", service.url)
    assert as_json.json == {"job_id": "j", "status": "canceling"}


async def test_logs_are_lines_and_further_lines_of_a_message_are_set_in(
    service: CannedService, pipeserve: Pipeserve
) -> None:
    line = {"seq": 3, "timestamp": "2026-01-31T12:00:00.5Z", "level": "info", "logger": "print", "step_name": "split"}
    logs = [{**line, "message": "one\ntwo"}, {**line, "seq": 4, "step_name": None, "message": "three"}]
    service.answer("GET /jobs/j/logs", canned({"logs": logs, "next": 4, "done": True}))
    plain = (await pipeserve("jobs", "logs", "j", "--url", service.url)).out.splitlines()
    assert [line[24:] for line in plain if line[0] != " "] == ["INFO    split: one", "INFO    -: three"]
    assert plain[1] == "    two"
    as_json = (await pipeserve("jobs", "logs", "j", "--json", "--url", service.url)).out.splitlines()
    assert ['"message":"one\\ntwo"' in as_json[0], len(as_json)] == [True, 2]


async def test_explain_prints_the_sentences(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer("GET /jobs/j/explain", canned({"summary": ["It waited.", "It ran."], "timing": {}}))
    assert (await pipeserve("jobs", "explain", "j", "--url", service.url)).out == "It waited.\nIt ran.\n"
    assert (await pipeserve("jobs", "explain", "j", "--json", "--url", service.url)).json["timing"] == {}


@pytest.mark.parametrize(
    ("command", "route"),
    [
        ("show", "GET /jobs/j"),
        ("watch", "GET /stream/j"),
        ("cancel", "POST /jobs/j/cancel"),
        ("retry", "POST /jobs/j/retry"),
        ("logs", "GET /jobs/j/logs"),
        ("explain", "GET /jobs/j/explain"),
    ],
)
async def test_an_unknown_id_is_one_sentence(
    service: CannedService, pipeserve: Pipeserve, command: str, route: str
) -> None:
    service.answer(route, UNKNOWN)
    done = await pipeserve("jobs", command, "j", "--url", service.url)
    assert (done.code, done.out) == (1, "")
    sentence = "pipeserve: There is no job 'j' here. It never was, or its record has expired."
    assert [line for line in done.err.splitlines() if line != "job j"] == [sentence]


# retry


async def test_retry_prints_old_and_new_and_goes_on_after_one_that_cant_be(
    service: CannedService, pipeserve: Pipeserve
) -> None:
    service.answer("POST /jobs/a/retry", canned({"job_id": "a2"}, 202))
    service.answer("POST /jobs/b/retry", problem(409, "not_retryable"))
    service.answer("POST /jobs/c/retry", canned({"job_id": "c2"}, 202))
    done = await pipeserve("jobs", "retry", "a", "b", "c", "a", "--url", service.url)
    assert (done.code, done.out, done.err) == (1, "a → a2\nc → c2\n", "pipeserve: b: why\n")
    as_json = await pipeserve("jobs", "retry", "a", "b", "--json", "--url", service.url)
    assert [(entry["job_id"], entry["retried_as"]) for entry in as_json.json] == [("a", "a2"), ("b", None)]
    assert as_json.json[1]["error"]["code"] == "not_retryable"


async def test_retry_all_finds_the_jobs_on_all_pages_before_it_begins(
    service: CannedService, pipeserve: Pipeserve
) -> None:
    service.answer("GET /jobs", page(lost("2"), cursor="c"), page(lost("1")))
    for old in "12":
        service.answer(f"POST /jobs/{old}/retry", canned({"job_id": f"{old}n"}, 202))
    done = await pipeserve(
        "jobs", "retry", "--all", "--status", "failed", "--code", "worker_lost", "--url", service.url
    )
    assert (done.code, done.out) == (0, "2 → 2n\n1 → 1n\n"), done.err
    assert [request.path for request in service.received] == ["/jobs", "/jobs", "/jobs/2/retry", "/jobs/1/retry"]
    assert service.received[0].query == "status=failed&code=worker_lost&limit=100"
    assert service.received[2].headers["idempotency-key"] == "jobs-retry-all:2", "a second time finds the same new job"


async def test_on_a_terminal_retry_all_asks_unless_told_not_to(service: CannedService, tmp_path: Path) -> None:
    service.answer("GET /jobs", page(lost("2"), lost("1")))
    for old in "12":
        service.answer(f"POST /jobs/{old}/retry", canned({"job_id": f"{old}n"}, 202))
    retry = ("jobs", "retry", "--all", "--code", "worker_lost", "--url", service.url)
    refused = on_a_terminal(tmp_path, *retry, types=b"n\n")
    assert "Run 2 jobs again?" in refused.out
    assert refused.code == 1
    assert [request.method for request in service.received] == ["GET"]
    agreed = on_a_terminal(tmp_path, *retry, types=b"y\n")
    assert agreed.code == 0
    assert "1 → 1n" in agreed.out
    unasked = on_a_terminal(tmp_path, *retry, "--yes")
    assert (unasked.code, unasked.out) == (0, "2 → 2n\n1 → 1n\n")


async def test_retry_of_no_match_says_so(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer("GET /jobs", page())
    done = await pipeserve("jobs", "retry", "--all", "--status", "expired", "--url", service.url)
    assert (done.code, done.out, done.err) == (0, "", "No such jobs.\n")


async def test_a_retry_that_breaks_off_tells_how_far_it_came(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer("POST /jobs/a/retry", canned({"job_id": "a2"}, 202))
    service.answer("POST /jobs/b/retry", canned("<html>"))
    done = await pipeserve("jobs", "retry", "a", "b", "c", "--url", service.url)
    assert (done.code, done.out) == (1, "a → a2\n")
    assert "1 of 3 done; not known of b, whether it was retried" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["retry"], "say which jobs"),
        (["retry", "--all"], "--all without --status or --code"),
        (["retry", "--all", "j", "--code", "x"], "give ids or --all"),
        (["retry", "j", "--code", "x"], "go with --all"),
        (["retry", "--all", "--status", "running"], "only jobs that have ended"),
        (["list", "--status", "gone"], "'gone' is not one of"),
        (["list", "--limit", "0"], "Invalid value for '--limit'"),
        (["list", "--label", "tenant"], "--label 'tenant': write it as name=value"),
        (["list", "--label", "a=1", "--label", "a=2"], "--label a: given twice"),
        (["show"], "Missing argument 'ID'"),
        (["show", "j", "--url", "nowhere"], "'nowhere' is not a service's address"),
    ],
    ids=" ".join,
)
async def test_a_usage_error_of_jobs_exits_2_and_says_what_is_wrong(
    pipeserve: Pipeserve, arguments: list[str], words: str
) -> None:
    done = await pipeserve("jobs", *arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


# what invoke sends with a job


async def test_invoke_sends_priority_labels_and_key(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer(
        "POST /invoke", problem(429, "queue_full", retryable=True, retry_after="0"), canned({"job_id": "j"}, 202)
    )
    done = await pipeserve(
        "invoke", "--async", "--priority", "-4", "--label", "tenant=a", "--idempotency-key", "k-1", "--url", service.url
    )
    assert (done.code, done.out) == (0, "j\n"), done.err
    assert service.received[-1].json == {"parameters": {}, "priority": -4, "labels": {"tenant": "a"}}
    assert [request.headers["idempotency-key"] for request in service.received] == ["k-1", "k-1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--priority", "11"], "Invalid value for '--priority'"),
        (["--label", "=x"], "--label '=x': write it as name=value"),
        (["--idempotency-key", "schlüssel"], "idempotency_key: write it in visible ASCII"),
    ],
    ids=" ".join,
)
async def test_what_invoke_cant_send_exits_2(pipeserve: Pipeserve, arguments: list[str], words: str) -> None:
    done = await pipeserve("invoke", *arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


async def test_a_key_that_was_used_for_another_call_exits_2(service: CannedService, pipeserve: Pipeserve) -> None:
    service.answer("POST /invoke", problem(422, "idempotency_mismatch"))
    assert (await pipeserve("invoke", "--idempotency-key", "k", "--url", service.url)).code == 2
