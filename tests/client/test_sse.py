from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeserve.client._sse import Message, SseParser

STREAM = (
    "\ufeffretry: 2000\n\n: ping\n\nid: 1\nevent: log\ndata: {“a”: 1}\n\n"
    "id: 2\r\nevent: output\r\ndata: first\r\ndata: second\r\n\r\n"
    "id: 3\revent: x\rdata:no space\r\revent: nothing\n\nid: 4\ndata: unfinished\n"
).encode()
MESSAGES = [
    Message("log", "{“a”: 1}", "1"),
    Message("output", "first\nsecond", "2"),
    Message("x", "no space", "3"),
]


def test_reads_fields_comments_and_all_three_line_ends() -> None:
    parser = SseParser()
    assert parser.feed(STREAM) == MESSAGES
    assert parser.retry == 2.0


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_where_the_bytes_are_cut_makes_no_difference(cuts: list[int]) -> None:
    parser = SseParser()
    edges = [0, *sorted(cuts), len(STREAM)]
    found = [message for start, end in pairwise(edges) for message in parser.feed(STREAM[start:end])]
    assert found == MESSAGES


def test_one_byte_at_a_time_is_a_stream_too() -> None:
    parser = SseParser()
    assert [message for byte in STREAM for message in parser.feed(bytes([byte]))] == MESSAGES


@pytest.mark.parametrize("retry", ["soon", "-1", "", "²"])
def test_a_retry_that_is_no_number_is_ignored(retry: str) -> None:
    parser = SseParser()
    parser.feed(f"retry: {retry}\n\n".encode())
    assert parser.retry is None
