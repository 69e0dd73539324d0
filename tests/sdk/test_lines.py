"""Text that comes in pieces becomes lines, the same however it was cut into pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeserve.sdk.lines import LONGEST, OpenLine, shortened


def lines(*pieces: str) -> list[str]:
    line, found = OpenLine(), []
    for piece in pieces:
        start = 0
        while start < len(piece):
            ended, start = line.take(piece, start)
            if ended is not None:
                found.append(ended)
    return [*found, rest] if (rest := line.rest()) else found


@given(text=st.text("ab\r\n", max_size=30), cuts=st.lists(st.integers(0, 30), max_size=6))
def test_it_does_not_matter_how_a_text_is_cut_into_pieces(text: str, cuts: list[int]) -> None:
    places = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    pieces = [text[start:stop] for start, stop in pairwise(places)]
    assert lines(*pieces) == lines(text)


def test_every_line_end_ends_a_line_and_a_bare_return_ends_no_empty_one() -> None:
    assert lines("a\nb\r\nc\rd") == ["a", "b", "c", "d"]
    assert lines("\n\r\n\r\r\rx") == ["", "", "x"]


def test_of_a_line_without_end_no_more_is_held_than_is_kept() -> None:
    assert len(lines("x" * 10_000_000)[0]) == LONGEST + 1
    assert lines(*["x" * 1000] * 1000, "\nnext") == ["x" * (LONGEST + 1), "next"]


def test_a_long_line_is_cut_between_characters() -> None:
    assert shortened("x" * LONGEST) == ("x" * LONGEST, False)
    assert shortened("x" * (LONGEST + 1)) == ("x" * LONGEST + "…", True)
    text, cut = shortened("x" + "é" * LONGEST)
    assert cut
    assert text == "x" + "é" * ((LONGEST - 1) // 2) + "…"
    assert shortened("a\ud800b") == ("a?b", False)
