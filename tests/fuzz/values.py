"""Strategies: JSON values, and bytes that almost are."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
"""Text that UTF-8 can carry."""
WHOLE = st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, -1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**300])
REAL = st.floats(allow_nan=False, allow_infinity=False)
SCALAR = st.none() | st.booleans() | WHOLE | REAL | TEXT
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)
"""Whatever JSON can say."""


WORD = st.integers(-(2**63), 2**64 - 1) | st.sampled_from([0, 2**31, 2**53 + 1, 2**63, 2**64 - 1, -(2**63)])
JSON_OF_WORDS: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | WORD | REAL | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
"""The same with whole numbers of 64 bits at most, which is what a step's outputs may have."""


def cut(data: bytes) -> st.SearchStrategy[bytes]:
    """``data`` with a byte changed, left out or put in, or cut off."""
    place = st.integers(0, len(data))
    piece = st.binary(max_size=3)
    return st.tuples(place, st.integers(0, 3), piece).map(lambda at: data[: at[0]] + at[2] + data[at[0] + at[1] :])


def deep(depth: int, opening: str = "[", closing: str = "]") -> str:
    """JSON nested so deep."""
    return opening * depth + closing * depth


NEARLY_JSON = st.one_of(
    st.binary(max_size=30),
    JSON.flatmap(lambda value: cut(_encoded(value))),
    st.sampled_from(
        [b"", b"NaN", b"[Infinity]", b'{"a":-Infinity}', b"1e400", b'"\\ud800"', b'{"a":1,"a":2}', b"\xef\xbb\xbf{}"]
    ),
    st.integers(1, 20_000).map(lambda depth: deep(depth).encode()),
    st.integers(1, 5_000).map(lambda depth: deep(depth, '{"a":', "}").encode()),
    st.integers(1, 5_000).map(lambda digits: b"9" * digits),
)
"""What may stand where JSON should."""


def _encoded(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # a whole number of more than 64 bits
        return repr(value).encode()
