"""A process's own lines: how they look, and what they say of where they were written."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from tests.api.harness import Served, serving, wait_until

from pipeserve import Secret, pipeline, step
from pipeserve.process_log import StructuredFormatter, configure_logging, get_log
from pipeserve.runtime.line_fields import ContextFields, request_id
from pipeserve.sdk.pipeline import Pipeline
from pipeserve.settings import LogFormat

author = logging.getLogger("author.module")


@step
def speaks(word: str) -> str:
    author.warning("in a step: %s", word, extra={"size": 3})
    return word


@step
def listens(word: str) -> str:
    author.warning("in another")
    return word


@pipeline
def talking(word: str) -> str:
    return listens(speaks(word))


@step
def raises(word: str) -> str:
    raise ValueError(word)


@pipeline
def failing(word: str) -> str:
    return raises(word)


@contextmanager
def logging_to(form: LogFormat, fields: ContextFields | None = None, level: str = "info") -> Iterator[io.StringIO]:
    """The process's log as a service's, until the block ends."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, before = root.handlers[:], root.level
    configure_logging(level, stream=stream, form=form, fields=fields)
    try:
        yield stream
    finally:
        root.handlers[:] = handlers
        root.setLevel(before)


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@asynccontextmanager
async def said_by(served: Pipeline[..., Any], **service: Any) -> AsyncIterator[tuple[Served, io.StringIO]]:
    fields = ContextFields()
    with logging_to("json", fields) as stream:
        async with serving(served, service=service) as on:
            fields.deployment_id = on.services.deployment.id
            yield on, stream


def test_json_is_one_object_a_line_whatever_is_in_it():
    circle: dict[str, Any] = {}
    circle["itself"] = circle
    with logging_to("json") as stream:
        log = logging.getLogger("x")
        log.info("two\nlines", extra={"ratio": float("nan"), "path": object, "many": {(1, 2): 3}})
        log.info("round", extra={"circle": circle})
        log.info("plain", extra={"count": 3, "text": "é\ud800", "nothing": None})
        get_log("y", bound=1).info("bound")
        try:
            raise ValueError("why")
        except ValueError:
            log.exception("failed")
    lines = parsed(stream)
    assert [line["event"] for line in lines] == ["two\nlines", "round", "plain", "bound", "failed"]
    assert (lines[2]["count"], lines[2]["text"], lines[2]["nothing"]) == (3, "é\ud800", None)
    assert lines[3]["bound"] == 1
    assert "ValueError: why" in lines[4]["exception"]
    assert all({"timestamp", "level", "logger"} <= line.keys() for line in lines)


@pytest.mark.parametrize(("form", "line"), [("auto", "event=told"), ("keyvalue", "event=told"), ("console", "told  ")])
def test_the_form_is_as_chosen_and_keyvalue_where_there_is_no_terminal(form: LogFormat, line: str):
    with logging_to(form) as stream:
        logging.getLogger("x").info("told", extra={"count": 3})
    assert line in stream.getvalue()
    assert "count=" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_what_a_line_says_itself_wins():
    formatter = StructuredFormatter("json", fields=lambda: {"job_id": "of the context", "step": "s"})
    record = logging.makeLogRecord({"msg": "x", "job_id": "its own"})
    line = json.loads(formatter.format(record))
    assert (line["job_id"], line["step"]) == ("its own", "s")


async def test_a_line_of_authors_code_names_its_job_and_step():
    async with said_by(talking) as (on, stream):
        answer = await on.invoke({"word": "a"})
        lines = [line for line in parsed(stream) if line["logger"] == "author.module"]
    job_id, deployment_id = answer.json()["job_id"], on.services.deployment.id
    assert [(line["event"], line["step"]) for line in lines] == [("in a step: a", "speaks"), ("in another", "listens")]
    assert {(line["job_id"], line["attempt"], line["deployment_id"]) for line in lines} == {(job_id, 1, deployment_id)}
    assert lines[0]["size"] == 3


async def test_a_failed_step_is_logged_with_its_job():
    async with said_by(failing) as (on, stream):
        job_id = (await on.invoke({"word": "a"})).json()["job_id"]
        [line] = [line for line in parsed(stream) if "failed" in line["event"]]
    assert (line["job_id"], line["attempt"]) == (job_id, 1)


async def test_each_request_has_a_line_and_its_id_when_that_is_asked_for():
    async with said_by(talking, access_log=True, auth_key="k-1234567890abcdef") as (on, stream):
        headers = {"authorization": "Bearer k-1234567890abcdef"}
        ours = await on.http.post("/invoke", json={"parameters": {"word": "a"}}, headers=headers)
        theirs = await on.http.get("/jobs?limit=1&token=tok-secret", headers=headers | {"x-request-id": "abc-1.2"})
        none = await on.http.get("/jobs")
        await wait_until(lambda: stream.getvalue().count('"request"') == 3, "all were logged")
        accessed = [line for line in parsed(stream) if line["logger"] == "pipeserve_api.access"]
        stepped = [line for line in parsed(stream) if line["logger"] == "author.module"]
    assert [(line["method"], line["path"], line["status"]) for line in accessed] == [
        ("POST", "/invoke", 200),
        ("GET", "/jobs", 200),
        ("GET", "/jobs", 401),
    ]
    assert [line["request_id"] for line in accessed] == [
        answer.headers["x-request-id"] for answer in (ours, theirs, none)
    ]
    assert theirs.headers["x-request-id"] == "abc-1.2"
    assert len(ours.headers["x-request-id"]) == 32
    assert {line["request_id"] for line in stepped} == {ours.headers["x-request-id"]}
    assert accessed[0]["seconds"] > 0
    assert accessed[0]["caller"] not in ("", "-")
    assert accessed[2]["caller"] == "-"
    text = str([line for line in parsed(stream) if line["logger"] != "httpx"])  # which is the test's own
    assert "tok-secret" not in text
    assert "k-1234567890abcdef" not in text


@pytest.mark.parametrize("wrong", ["", "a b", "a\tb", "é", "x" * 129, "a;b", '"'])
async def test_an_id_that_is_none_is_not_repeated(wrong: str):
    async with said_by(talking, access_log=True) as (on, _):
        headers = {b"x-request-id": wrong.encode("latin-1")}
        answer = await on.http.get("/health", headers=list(headers.items()))
    assert answer.headers["x-request-id"] != wrong
    assert len(answer.headers["x-request-id"]) == 32


async def test_a_path_cannot_forge_a_line():
    async with said_by(talking, access_log=True) as (on, stream):
        await on.http.get("/nowhere%0a%7b%22event%22:1%7d")
        [line] = [line for line in parsed(stream) if line["logger"] == "pipeserve_api.access"]
    assert line["path"] == "/nowhere%0a%7b%22event%22:1%7d"


async def test_without_the_setting_there_is_neither_a_line_nor_an_id():
    async with said_by(talking) as (on, stream):
        answer = await on.http.get("/health", headers={"x-request-id": "abc"})
    assert "x-request-id" not in answer.headers
    assert "pipeserve_api.access" not in stream.getvalue()
    assert request_id.get() is None


@step
def makes(word: str) -> Secret[str]:
    author.warning("made %s", "hidden-" + word)
    return "hidden-" + word


@step
def takes(word: Any) -> int:
    author.warning("took %s", word)
    return len(word)


@pipeline
def masking(word: str) -> int:
    return takes(makes(word))


async def test_a_masked_line_that_waits_for_its_secret_names_the_step_that_wrote_it():
    async with said_by(masking) as (on, stream):
        assert (await on.invoke({"word": "a"})).status_code == 200
        lines = [line for line in parsed(stream) if line["logger"] == "author.module"]
    assert [line["step"] for line in lines] == ["makes", "takes"]
    assert "hidden-a" not in stream.getvalue()
