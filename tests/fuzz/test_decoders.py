"""What reads bytes from outside: only the documented errors come out of it, and what was written is read back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from starlette.datastructures import Headers
from tests.fuzz.running import LONG, examples
from tests.fuzz.values import JSON, JSON_OF_WORDS, NEARLY_JSON, TEXT, cut, deep

from pipeserve.client._follow import EventFollower
from pipeserve.client._jobs import parse_event, parse_job
from pipeserve.client._protocol import Reply, error_of, json_object, retry_after
from pipeserve.client._sse import Message, SseParser
from pipeserve.client.errors import ClientError, UnexpectedReplyError, UnreachableError
from pipeserve.errors import ConfigurationError, Problem, ProblemError
from pipeserve.events import Event, EventType, decode, encode_body, event_type_of, number, sse_frame
from pipeserve.jobs import JobStatus, is_job_id, new_job_id
from pipeserve.key_file import DEFAULT_SCOPES, NAME, KeyScope, new_key, read_key_file, stanza
from pipeserve.runtime.recording.brief import Brief
from pipeserve.runtime.values.artifact_ref import MARK, ArtifactRef
from pipeserve.store.records import RecordReader
from pipeserve.telemetry.spans import OpenTelemetry
from pipeserve_api.byte_range import UnsatisfiableError, wanted_range
from pipeserve_api.preferences import CallPreferences
from pipeserve_worker.report import read_line

pytestmark = LONG
JOB = "0199c0de-0000-7000-8000-000000000000"
NINES = "9" * 5000
"""More digits than Python reads."""
EVENT = st.builds(
    Event,
    event_type=st.sampled_from(EventType),
    job_id=st.just(JOB),
    attempt=st.integers(0, 2**31),
    timestamp=st.integers(0, 4_000_000_000_000_000).map(lambda micros: micros / 1e6),
    step_name=st.none() | TEXT,
    level=st.none() | st.sampled_from(["info", "error"]),
    message=st.none() | TEXT,
    data=JSON_OF_WORDS,
    error=st.none() | st.builds(Problem, status=st.integers(400, 599), detail=TEXT, code=st.just("step_failed")),
    seq=st.integers(1, 2**53),
)


# Events.


@examples(200)
@given(EVENT)
def test_an_event_is_read_back_as_it_was_written(event: Event) -> None:
    body = encode_body(event)
    again = decode(number(event.seq, body))
    assert event_type_of(body) == event.event_type
    assert (again.seq, again.event_type, again.job_id) == (event.seq, event.event_type, event.job_id)
    assert (again.step_name, again.level, again.message) == (event.step_name, event.level, event.message)
    assert json.dumps(again.data) == json.dumps(event.data)
    assert again.error == event.error
    assert math.isclose(again.timestamp, event.timestamp, abs_tol=2e-6)


@examples(150)
@given(st.lists(EVENT, min_size=1, max_size=4), st.lists(st.integers(0, 5000), max_size=6))
def test_what_the_service_streams_the_clients_parser_reads(events: list[Event], cuts: list[int]) -> None:
    blocks = [sse_frame(event.seq, encode_body(event)) for event in events]
    stream = b"".join(blocks)
    parser = SseParser()
    edges = sorted({0, len(stream), *(at for at in cuts if at < len(stream))})
    found: list[Message] = []
    for start, stop in pairwise(edges):
        found += parser.feed(stream[start:stop])
    assert [(message.id, message.event) for message in found] == [
        (str(event.seq), event.event_type.value) for event in events
    ]
    assert [json.dumps(decode(message.data).data) for message in found] == [json.dumps(event.data) for event in events]


@examples(400)
@given(NEARLY_JSON.map(lambda data: data.decode("utf-8", "replace")) | JSON.map(json.dumps))
@example("1")
@example("[]")
def test_what_is_no_event_is_told_as_such(text: str) -> None:
    with pytest.raises(UnexpectedReplyError):
        parse_event(text)


@examples(300)
@given(EVENT.flatmap(lambda event: cut(number(event.seq, encode_body(event)))))
@example(b'{"event_type":"log","job_id":"a","attempt":1,"timestamp":"0001-01-01T00:00:00"}')
@example(b'{"event_type":"log","job_id":"a","attempt":1,"timestamp":"9999-12-31T23:59:59-23:59"}')
def test_a_damaged_event_is_one_or_told_as_such(data: bytes) -> None:
    with suppress(UnexpectedReplyError):
        assert isinstance(parse_event(data.decode("utf-8", "replace")), Event)


LINE = st.tuples(
    st.sampled_from([b"id", b"event", b"data", b"retry", b"", b"x"]),
    st.sampled_from([b":", b": ", b""]),
    st.binary(max_size=12) | st.sampled_from([b"gap", b"snapshot", b'{"to":5}', NINES.encode(), b"9" * 400]),
).map(b"".join)


@examples(300)
@given(st.lists(LINE, max_size=8), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.integers(1, 7))
@example([b"retry: " + b"9" * 400], b"\n", 1)
@example([b"retry: " + NINES.encode()], b"\n", 1)
def test_a_stream_of_any_lines_is_read_alike_however_it_is_cut(lines: list[bytes], end: bytes, size: int) -> None:
    stream = b"".join(line + end for line in [*lines, b"", b""])
    whole, pieces = SseParser(), SseParser()
    expected = whole.feed(stream) + whole.feed(b"\n\n")
    found = [
        message for start in range(0, len(stream), size) for message in pieces.feed(stream[start : start + size])
    ] + pieces.feed(b"\n\n")
    assert found == expected
    assert pieces.retry == whole.retry
    assert whole.retry is None or math.isfinite(whole.retry)


@examples(300)
@given(st.lists(LINE, max_size=8).map(b"\n".join))
@example(b"event: gap\ndata: 1\n\n")
@example(b"data: []\n\n")
def test_a_follower_is_told_of_a_stream_that_is_none(stream: bytes) -> None:
    try:
        for event in EventFollower(JOB).feed(stream + b"\n\n"):
            assert isinstance(event, Event)
    except (UnexpectedReplyError, UnreachableError):
        pass


@examples(300)
@given(
    st.sampled_from([200, 202, 404, 422, 429, 500, 503]),
    st.sampled_from(["application/json", "application/problem+json", "text/html", ""]),
    st.one_of(NEARLY_JSON, JSON_OF_WORDS.map(orjson.dumps)),
    st.sampled_from(["", "1", "-1", "soon", "²", NINES]),
)
def test_a_reply_is_read_or_is_a_clients_error(status: int, media_type: str, body: bytes, later: str) -> None:
    reply = Reply(status, {"content-type": media_type, "retry-after": later}, body)
    assert isinstance(error_of(reply), ProblemError | ClientError)
    seconds = retry_after(reply)
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))
    for read in (lambda: json_object(reply, expected=(200,)), lambda: parse_job(reply)):
        with suppress(ProblemError, ClientError):
            read()


# What the store holds.


FIELDS = (
    *("status", "created_at", "total_steps", "outputs", "shown_outputs", "caller", "run_name", "labels", "run_at"),
    *("started_at", "completed_at", "attempt", "max_attempts", "worker", "execution_time", "progress", "steps"),
    *("priority", "error", "canceled_by", "cancel_reason", "expires_at", "webhook", "webhook_status", "last_seq"),
    *("parameters", "shown_parameters", "keep_parameters", "fenced_writes", "retried_from", "deployment_id"),
)
STORED = st.one_of(
    st.binary(max_size=20), NEARLY_JSON, JSON_OF_WORDS.map(orjson.dumps), st.sampled_from([b"1", b"nan"])
)


@examples(300)
@given(
    st.dictionaries(st.sampled_from(FIELDS).map(str.encode), STORED, max_size=8),
    st.sampled_from(JobStatus),
    st.lists(STORED, max_size=2),
    st.booleans(),
)
@example({b"webhook": b"1"}, JobStatus.PENDING, [], True)
@example({b"webhook": b"{}"}, JobStatus.PENDING, [b"1"], True)
@example({b"attempt": NINES.encode(), b"started_at": b"9" * 40}, JobStatus.FAILED, [], True)
@example({b"outputs": deep(5000, '{"a":', "}").encode()}, JobStatus.COMPLETED, [], True)
def test_a_damaged_record_is_a_job_as_far_as_it_can_be_read(
    fields: dict[bytes, bytes], status: JobStatus, deliveries: list[bytes], sound: bool
) -> None:
    base = {b"status": status.encode(), b"created_at": b"1700000000000000"}
    job = RecordReader().read(JOB, fields | base if sound else fields, 3, deliveries)
    if sound:
        assert job is not None
        assert (job.job_id, job.status) == (JOB, status)
        assert job.created_at == datetime.fromtimestamp(1_700_000_000, UTC)
    if job is not None:
        job.model_dump_json()


ROW = st.tuples(
    st.sampled_from(EventType).map(str),
    st.integers(0, 4_000_000_000).map(float),
    st.none() | TEXT,
    st.dictionaries(TEXT, JSON_OF_WORDS, max_size=2),
)


@examples(150)
@given(st.lists(ROW, max_size=6), st.integers(0, 7), st.integers(0, 7))
def test_events_in_brief_are_read_back(rows: list[Any], start: int, stop: int) -> None:
    brief = Brief(JOB, rows)
    again = Brief.decode(JOB, brief.encode())
    assert again.bodies() == brief.bodies()
    assert again.bodies(start, stop) == brief.bodies()[start:stop]
    assert [decode(number(1, body)).event_type for body in again.bodies()] == [row[0] for row in rows]


@examples(300)
@given(st.one_of(NEARLY_JSON, JSON_OF_WORDS.map(orjson.dumps)))
@example(b"1")
@example(b"[[1]]")
@example(b"[{}]")
def test_what_is_no_brief_is_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        Brief.decode(JOB, data)


@examples(300)
@given(
    JSON_OF_WORDS
    | st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("name", "media_type", "size", "sha256", "href", "missing", "more"), JSON_OF_WORDS),
    )
)
def test_an_output_that_looks_like_an_artifact_is_one_only_if_sound(members: Any) -> None:
    sound = {"name": "a.bin", "media_type": "text/plain", "size": 1, "sha256": "0" * 64, "href": "/a"}
    for value in (members, {MARK: members}, {MARK: sound | members} if isinstance(members, dict) else None):
        ref = ArtifactRef.read(value)
        if ref is not None:
            assert (type(ref.name), type(ref.href), type(ref.size), type(ref.missing)) == (str, str, int, bool)
            assert ref.size >= 0
            assert "/" not in ref.name
            assert ArtifactRef.read(ref.as_json()) == ref


# What operators and callers write.


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.toml"


@examples(150)
@given(
    entries=st.lists(
        st.tuples(
            st.from_regex(NAME, fullmatch=True),
            st.lists(st.sampled_from(KeyScope), min_size=1, unique=True),
            st.none() | st.datetimes(datetime(1971, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC)),
        ),
        max_size=4,
    )
)
def test_keys_that_were_written_are_read_back(file: Path, entries: list[Any]) -> None:
    file.write_text("\n".join(stanza(name, new_key(), scopes, expires) for name, scopes, expires in entries))
    read = read_key_file(file)
    assert [(entry.name, entry.scopes, entry.expires) for entry in read] == [
        (name, frozenset(scopes), expires) for name, scopes, expires in entries
    ]


GOOD = (stanza("a", "psk_1", DEFAULT_SCOPES) + "runs_per_day = 5\n" + stanza("b", "psk_2", [KeyScope.ADMIN])).encode()


@examples(300)
@given(data=st.one_of(st.binary(max_size=40), cut(GOOD), st.lists(cut(GOOD), max_size=2).map(b"\n".join)))
@example(data=b"a = " + NINES.encode())
@example(data=b"a = " + b"[" * 5000)
@example(data=b"a = " + b"{a=" * 5000)
@example(data=GOOD + b"expires = 0001-01-01T00:00:00+23:59\n")
@example(data=GOOD + b"expires = 9999-12-31T23:59:59-23:59\n")
def test_a_damaged_file_of_keys_is_a_wrong_setting(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with suppress(ConfigurationError):
        for entry in read_key_file(file):
            entry.expired(1.7e9)
            assert len(entry.digest) == 32


HEADER = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=60)
PART = st.sampled_from(["", "0", "5", "-", "99", NINES, "9" * 18, "9" * 19, "²", "x", " 1"])


@examples(300)
@given(HEADER | st.tuples(PART, PART).map(lambda ends: f"bytes={ends[0]}-{ends[1]}"), st.integers(0, 100))
@example(f"bytes={NINES}-", 10)
@example(f"bytes=-{NINES}", 10)
def test_a_range_is_a_part_of_the_file_or_ignored_or_refused(text: str, size: int) -> None:
    try:
        part = wanted_range(Headers({"range": text}), size=size, etag='"a"')
    except UnsatisfiableError:
        return
    if part is not None:
        assert 0 <= part.start < part.stop <= size


@examples(300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["prefer", "accept", "cache-control"]),
            HEADER | PART.map(lambda part: f"respond-async, wait={part}") | st.just("wait=nan, no-store, wait=1e400"),
        ),
        max_size=4,
    )
)
def test_preferences_that_are_not_understood_are_ignored(headers: list[tuple[str, str]]) -> None:
    scope = {
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        "query_string": b"",
    }
    read = CallPreferences.read(scope)
    assert read.wait is None or (read.wait >= 0 and math.isfinite(read.wait))
    assert all(value.isascii() and "\n" not in value for value in read.headers.values())


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def tracing() -> Iterator[OpenTelemetry]:
    made = OpenTelemetry(TracerProvider(shutdown_on_exit=False), owned=True)
    yield made
    made.close()


@examples(200)
@given(
    text=st.one_of(HEADER, st.just(PARENT), cut(PARENT.encode()).map(lambda raw: raw.decode("latin-1"))),
    state=HEADER | st.just("a=b,c=d") | st.just("=" * 600),
    attempt=st.integers(1, 40),
)
def test_whatever_stands_for_a_trace_starts_a_span(tracing: OpenTelemetry, text: str, state: str, attempt: int) -> None:
    headers = [(b"traceparent", text.encode("latin-1", "replace")), (b"tracestate", state.encode("latin-1"))]
    span = tracing.start_request("POST /invoke", headers, {})
    carrier = span.carrier
    span.end()
    for carried in (carrier, text, f"{text} {state}", None):
        tracing.start_attempt("run", carried, JOB, attempt, {}).end()
    if text == PARENT:
        assert carrier.startswith(PARENT[:35])
    else:
        assert carrier.isascii()
        assert len(carrier.partition(" ")[0]) == len(PARENT)


@examples(200)
@given(st.binary(max_size=60) | NEARLY_JSON.map(lambda data: b"ready " + data))
def test_a_line_that_no_worker_wrote_is_none(line: bytes) -> None:
    found = read_line(line)
    assert found is None or isinstance(found[1], str)


@examples(200)
@given(st.text(max_size=40) | cut(JOB.encode()).map(lambda raw: raw.decode("latin-1")))
def test_only_a_uuid_is_a_jobs_id(text: str) -> None:
    assume(text != JOB)
    assert not is_job_id(text) or (len(text) == 36 and text.isascii())
    assert is_job_id(new_job_id())
