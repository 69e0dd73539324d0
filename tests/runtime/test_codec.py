"""The codec: a step's result comes back equal and of its own type, or is refused in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr
from typing_extensions import TypedDict

from pipeserve import Materializer, Streamed
from pipeserve.runtime.values.codec import Codec, NotStorableError, UnreadableError
from pipeserve.runtime.values.materializers import Materializers

CODEC = Codec(Materializers())


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0


@dataclass
class Hidden:
    shown: int
    hidden: int = field(default=0, compare=False)


class Kind(Enum):
    BIG = "big"
    SMALL = "small"


class Answer(BaseModel):
    text: str
    points: tuple[Point, ...] = ()
    kinds: frozenset[Kind] = frozenset()
    score: float | None = Field(None, alias="the_score")


class BetterAnswer(Answer):
    extra: int = 0


class Pair(NamedTuple):
    left: int
    right: str


class Row(TypedDict):
    name: str
    at: date


def through(value: Any, annotation: Any) -> Any:
    return CODEC.decode(CODEC.encode(value, annotation), annotation)


def same(value: Any, back: Any) -> bool:
    if isinstance(value, float) and isinstance(back, float):
        return value == back or (math.isnan(value) and math.isnan(back))
    if isinstance(value, (list, tuple)):
        return (
            type(value) is type(back)
            and len(value) == len(back)
            and all(same(*pair) for pair in zip(value, back, strict=True))
        )
    if isinstance(value, dict):
        return type(back) is dict and value.keys() == back.keys() and all(same(value[key], back[key]) for key in value)
    return type(value) is type(back) and value == back


text = st.text(st.characters(exclude_categories=["Cs"]))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


@given(plain)
@settings(max_examples=150, deadline=None)
def test_plain_values_come_back_whatever_is_declared(value: Any) -> None:
    assert same(value, through(value, Any))


TYPED: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(),
    list[float]: st.lists(st.floats()),
    bytes: st.binary(),
    list[bytes]: st.lists(st.binary()),
    tuple[int, ...]: st.lists(st.integers()).map(tuple),
    set[str]: st.sets(text),
    frozenset[int]: st.frozensets(st.integers()),
    dict[int, str]: st.dictionaries(st.integers(), text),
    date: st.dates(),
    datetime: st.datetimes(timezones=st.just(UTC)) | st.datetimes(),
    timedelta: st.timedeltas(timedelta(days=-10_000), timedelta(days=10_000)),
    UUID: st.uuids(),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    Kind: st.sampled_from(Kind),
    Point: st.builds(Point, st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
    Answer: st.builds(
        Answer, text=text, kinds=st.frozensets(st.sampled_from(Kind)), the_score=st.none() | st.integers(0, 9)
    ),
    Pair: st.builds(Pair, st.integers(), text),
    Row: st.fixed_dictionaries({"name": text, "at": st.dates()}),
    int | str | None: st.none() | st.integers() | text,
    tuple[Annotated[int, "count"], Annotated[set[int], "members"]]: st.tuples(st.integers(), st.sets(st.integers())),
}


@given(st.data())
@settings(max_examples=250, deadline=None)
def test_typed_values_come_back_as_their_types(data: st.DataObject) -> None:
    annotation = data.draw(st.sampled_from(list(TYPED)))
    value = data.draw(TYPED[annotation])
    assert same(value, through(value, annotation))


def test_arrays_come_back_whatever_is_declared() -> None:
    array = np.arange(6, dtype="float32").reshape(2, 3)
    for annotation in (Any, np.ndarray, np.ndarray | None):
        np.testing.assert_array_equal(through(array, annotation), array, strict=True)


def test_none_comes_back_where_an_array_may_be() -> None:
    assert through(None, np.ndarray | None) is None


def test_named_outputs_come_back_each_as_its_type() -> None:
    declared = tuple[Annotated[np.ndarray, "rows"], Annotated[set[int], "seen"], Annotated[pd.DataFrame, "table"]]
    table = pd.DataFrame({"a": [1, 2]})
    rows, seen, back = through((np.zeros(2), {1}, table), declared)
    np.testing.assert_array_equal(rows, np.zeros(2))
    assert seen == {1}
    pd.testing.assert_frame_equal(back, table)


def test_arrays_in_lists_and_dicts_come_back() -> None:
    lists = through([np.zeros(1), np.ones(2)], list[np.ndarray])
    assert [array.tolist() for array in lists] == [[0.0], [1.0, 1.0]]
    found = through({"w": np.ones(2), "meta": {"epochs": 3, "b": np.zeros(1)}}, Any)
    assert found["meta"]["epochs"] == 3
    assert (found["w"].tolist(), found["meta"]["b"].tolist()) == ([1.0, 1.0], [0.0])


def test_all_that_a_step_has_yielded_comes_back_as_its_list() -> None:
    assert same(["a", "b"], through(Streamed(["a", "b"]), list[str]))


def test_a_whole_number_may_stand_for_a_float_and_a_numpy_float_too() -> None:
    assert through(3, float) == 3.0
    assert through(np.float64(0.5), float) == 0.5


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ((1, 2), Any),
        ({1, 2}, Any),
        (Point(1), Any),
        ([1, (2, 3)], Any),
        ({1: "a"}, Any),
        (datetime(2026, 1, 1), Any),
        (Kind.BIG, Any),
        (b"x" * 3, str),
        (True, int),
        (np.int64(3), Any),
        (object(), Any),
        ("\ud800", str),
        (SecretStr("x"), SecretStr),
        (BetterAnswer(text="x", extra=3), Answer),  # pyright: ignore[reportCallIssue]
        (Hidden(1, hidden=2), tuple[int, int]),
        ({"a": (1, 2)}, dict[str, Any]),
        (np.array([{}]), np.ndarray),
        ([np.array([{}])], list[np.ndarray]),
        ({1: np.zeros(1)}, dict[int, np.ndarray]),
        (Decimal("NaN"), Decimal),
    ],
    ids=lambda value: "object" if type(value) is object else repr(value),  # the same in every process that collects
)
def test_what_would_not_come_back_as_it_was_is_refused(value: Any, annotation: Any) -> None:
    if isinstance(value, bytes):  # bytes have a materializer, whatever is declared
        assert through(value, annotation) == value
        return
    with pytest.raises(NotStorableError):
        CODEC.encode(value, annotation)


def test_fields_that_equality_leaves_out_come_back_too() -> None:
    assert through(Hidden(1, hidden=2), Hidden).hidden == 2


def test_a_refusal_says_what_is_declared_and_repeats_no_value() -> None:
    with pytest.raises(NotStorableError) as refused:
        CODEC.encode(("hunter2", 1), Any)
    assert "tuple" in str(refused.value)
    assert "Any" in str(refused.value)
    with pytest.raises(NotStorableError) as refused_too:
        CODEC.encode(["hunter2"], list[int])
    assert "hunter2" not in str(refused.value) + str(refused_too.value)


class Broken(Materializer[Point]):
    type = Point
    media_type = "text/plain"
    suffix = ".txt"

    def dump(self, value: Point) -> bytes:
        if value.x == 0:
            raise ZeroDivisionError("nothing there")
        return b"fine"

    def load(self, data: bytes) -> Point:
        raise LookupError("can't read")


def test_a_materializer_that_fails_is_a_refusal() -> None:
    codec = Codec(Materializers([Broken()]))
    with pytest.raises(NotStorableError, match="Broken can't store it"):
        codec.encode(Point(0), Point)
    with pytest.raises(UnreadableError, match="Broken can't read"):
        codec.decode(codec.encode(Point(1), Point), Point)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: b"\n",
        lambda data: b"[]\n1",
        lambda data: b"{}\n1",
        lambda data: data.replace(b"json", b"pickle"),
        lambda data: data[:-1],
        lambda data: b'{"kind":"materializer","type":"os.system"}\nx',
        lambda data: b'{"kind":"list","sizes":[1]}\nx',
        lambda data: b'{"kind":"list","sizes":3}\nx',
    ],
)
def test_bytes_that_are_no_stored_value_are_a_value_error(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's and our own: callers take both for a miss
        CODEC.decode(change(CODEC.encode([1, 2], list[int])), list[int])


def test_a_value_of_a_type_that_has_changed_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="validation error"):
        CODEC.decode(CODEC.encode(["a"], list[str]), list[int])
