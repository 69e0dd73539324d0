"""Materializers: values of libraries and of authors as bytes and back, and how they stand in JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from pipeserve import DefinitionError, Materializer
from pipeserve.runtime.values.encoding import NotJsonError, to_json
from pipeserve.runtime.values.materializers import Materializers
from pipeserve.sdk.materializer import NotStorableError


@dataclass
class Points:
    values: list[int]


class PointsAsText(Materializer[Points]):
    type = Points
    media_type = "text/plain"
    suffix = ".points"

    def dump(self, value: Points) -> bytes:
        return " ".join(map(str, value.values)).encode()

    def load(self, data: bytes) -> Points:
        return Points([int(part) for part in data.split()])

    def as_json(self, value: Points) -> Any:
        return {"points": len(value.values)}


def through(value: Any) -> Any:
    """The value, stored and read by the materializer of its type."""
    materializer = Materializers().find(value)
    assert materializer is not None
    return materializer.load(materializer.dump(value))


def as_json(value: Any, *extra: Materializer[Any]) -> Any:
    return json.loads(to_json(value, Materializers(extra)))


@given(
    npst.arrays(
        dtype=st.one_of(
            npst.integer_dtypes(), npst.floating_dtypes(), npst.boolean_dtypes(), npst.datetime64_dtypes(max_period="s")
        ),
        shape=npst.array_shapes(min_dims=0, min_side=0),
    )
)
@settings(max_examples=60, deadline=None)
def test_an_array_comes_back_with_its_type_shape_and_values(array: np.ndarray) -> None:
    back = through(array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


def test_an_array_of_objects_is_refused() -> None:
    with pytest.raises(NotStorableError, match="objects"):
        through(np.array([{}, None]))


def test_an_array_that_is_more_than_an_array_is_refused() -> None:
    with pytest.raises(NotStorableError, match="MaskedArray"):
        through(np.ma.masked_array([1, 2], mask=[True, False]))


TABLES = {
    "numbers": pd.DataFrame({"a": np.array([1, 2], "int8"), "b": [0.1 + 0.2, np.nan], "c": [True, False]}),
    "text": pd.DataFrame({"a": ["x", None], "b": pd.array(["y", None], dtype="string")}),
    "objects": pd.DataFrame({"a": np.array(["x", 3], dtype=object), "b": np.array([None, True], dtype=object)}),
    "missing": pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": pd.array([True, None], dtype="boolean")}),
    "times": pd.DataFrame(
        {
            "a": pd.to_datetime(["2026-01-01", None]),
            "b": pd.to_datetime(["2026-01-01T12:00:00.000000001", "2026-07-01"], format="ISO8601"),
            "c": pd.to_datetime(["2026-01-01", "2026-07-01"]).tz_localize("Europe/Berlin"),
            "d": pd.to_timedelta([1, None], unit="s"),
        }
    ),
    "categories": pd.DataFrame({"a": pd.Categorical(["u", None], categories=["v", "u"], ordered=True)}),
    "an index": pd.DataFrame({"a": [1, 2]}, index=pd.date_range("2026-01-01", periods=2, freq="D", name="day")),
    "levels": pd.DataFrame({"a": [1, 2]}, index=pd.MultiIndex.from_tuples([("x", 1), ("y", 2)], names=["n", None])),
    "levels of columns": pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("x", 1), ("x", 2)])),
    "columns of one name": pd.DataFrame([[1, 2.5]], columns=["a", "a"]),
    "columns that are numbers": pd.DataFrame([[1, 2]], columns=[10, 20]),
    "an index with repeats": pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=[7, 7]),
    "nothing": pd.DataFrame(),
    "no rows": pd.DataFrame({"a": pd.to_datetime(["2026-01-01"])})[:0],
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_comes_back_as_it_was(name: str) -> None:
    table = TABLES[name]
    pd.testing.assert_frame_equal(through(table), table)


def test_a_series_comes_back_as_it_was() -> None:
    series = pd.Series([1, 2], index=["x", "y"], name="count", dtype="uint16")
    pd.testing.assert_series_equal(through(series), series)


def test_a_table_keeps_its_attrs() -> None:
    table = pd.DataFrame({"a": [1]})
    table.attrs["source"] = "here"
    assert through(table).attrs == {"source": "here"}


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (pd.DataFrame({"when": pd.period_range("2026", periods=2, freq="Y")}), "when"),
        (pd.DataFrame({"what": [{}, {}]}), "what"),
        (pd.DataFrame({"ok": [1]}, index=pd.Index([()], tupleize_cols=False)), "the index"),
    ],
)
def test_a_table_that_would_lose_something_is_refused_and_the_place_is_named(table: Any, named: str) -> None:
    with pytest.raises(NotStorableError, match=named):
        through(table)


@given(
    st.lists(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()), max_size=5),
    st.lists(st.floats(width=32), max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_any_plain_values_in_a_table_come_back(objects: list[Any], floats: list[float]) -> None:
    rows = min(len(objects), len(floats))
    column = pd.Series(objects[:rows], dtype=object)
    table = pd.DataFrame({"a": column, "b": np.array(floats[:rows], "float32")})
    back = through(table)
    pd.testing.assert_frame_equal(back, table)
    assert [type(value) for value in back["a"]] == [type(value) for value in table["a"]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P", "RGB", "RGBA"])
def test_an_image_comes_back_with_its_mode_and_pixels(mode: str) -> None:
    image = Image.new(mode, (5, 3))
    image.putpixel((2, 1), 1 if len(image.getbands()) == 1 else tuple(range(1, len(image.getbands()) + 1)))
    back = through(image)
    assert (back.mode, back.size, back.tobytes()) == (image.mode, image.size, image.tobytes())


def test_an_image_that_png_can_not_hold_is_refused_with_advice() -> None:
    with pytest.raises(NotStorableError, match="CMYK; convert it first"):
        through(Image.new("CMYK", (2, 2)))


@pytest.mark.parametrize("value", [b"", b"\x00\xff", bytearray(b"abc")])
def test_bytes_come_back_with_their_type(value: Any) -> None:
    back = through(value)
    assert back == value
    assert type(back) is type(value)


def test_a_table_stands_in_json_as_records() -> None:
    table = pd.DataFrame(
        {"n": pd.array([1, None], dtype="Int64"), "at": pd.to_datetime(["2026-01-01T12:00", None], utc=True)}
    )
    assert as_json({"t": table}) == {"t": [{"n": 1, "at": "2026-01-01T12:00:00+00:00"}, {"n": None, "at": None}]}
    assert as_json(table["n"]) == [1, None]


def test_an_image_stands_in_json_as_png_in_base64() -> None:
    assert as_json([Image.new("RGB", (1, 1))])[0].startswith("iVBORw0KGgo")


def test_a_table_whose_columns_share_a_name_has_no_json() -> None:
    with pytest.raises(NotJsonError, match="share a name"):
        as_json(TABLES["columns of one name"])


def test_without_materializers_json_is_what_it_was() -> None:
    with pytest.raises(NotJsonError, match="DataFrame"):
        to_json(TABLES["numbers"])


def test_an_authors_materializer_is_found_for_its_type_and_for_subclasses() -> None:
    class Weighted(Points):
        pass

    mine = PointsAsText()
    known = Materializers([mine])
    assert known.find(Points([1])) is mine
    assert known.find(Weighted([1])) is mine
    assert known.find([1]) is None


def test_an_authors_materializer_comes_before_a_built_in_one() -> None:
    class Rounded(Materializer[np.ndarray]):
        type = np.ndarray
        media_type = "text/csv"
        suffix = ".csv"

        def dump(self, value: np.ndarray) -> bytes:
            return ",".join(f"{number:.0f}" for number in value).encode()

        def load(self, data: bytes) -> np.ndarray:
            return np.array(data.split(b","), dtype=float)

        def as_json(self, value: np.ndarray) -> Any:
            return self.dump(value).decode()

    mine = Rounded()
    assert Materializers([mine]).find(np.zeros(1)) is mine
    assert as_json({"a": np.array([1.4, 2.6]), "n": np.float32(0.5)}, mine) == {"a": "1,3", "n": 0.5}


def test_an_authors_form_in_json_wins_over_a_dataclass_own() -> None:
    @dataclass
    class Other:
        points: Points
        note: str
        _hidden: int = 0

    assert as_json(Other(Points([1, 2]), "x"), PointsAsText()) == {"points": {"points": 2}, "note": "x"}


def test_an_authors_form_in_json_wins_over_a_base_class_own() -> None:
    class Name(str):
        __slots__ = ()

    class Other(str):
        __slots__ = ()

    class Initial(PointsAsText):
        type = Name

        def as_json(self, value: Any) -> Any:
            return {"initial": value[0]}

    assert as_json({"a": Name("Ada"), "b": Other("Bob")}, Initial()) == {"a": {"initial": "A"}, "b": "Bob"}


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"type": 3}, "which class it stores"),
        ({"media_type": "text"}, "media_type"),
        ({"media_type": "text/html\r\nX-Evil: 1"}, "media_type"),
        ({"suffix": None}, "suffix"),
    ],
)
def test_a_materializer_that_does_not_say_all_is_refused(attributes: dict[str, Any], words: str) -> None:
    wrong = type("Wrong", (PointsAsText,), attributes)()
    with pytest.raises(DefinitionError, match=words):
        Materializers([wrong])


def test_finding_a_materializer_imports_no_library() -> None:
    program = (
        "import sys; from pipeserve.runtime.values.materializers import Materializers; "
        "assert Materializers().find(object()) is None; "
        "sys.exit(any(name in sys.modules for name in ('numpy', 'pandas', 'PIL', 'fsspec')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
