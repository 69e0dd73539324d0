"""Values that differ, though not always by ``==``; and the types that some of them are of."""

from __future__ import annotations

import math
import uuid
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any, Generic, TypeVar
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from PIL import Image
from pydantic import AnyUrl, BaseModel, ConfigDict, PrivateAttr, SecretBytes, SecretStr

T = TypeVar("T")


class Colour(Enum):
    RED = 1
    BLUE = 2


class Shade(Enum):
    RED = 1


class Level(IntEnum):
    ONE = 1


class Access(Flag):
    READ = 1
    WRITE = 2


@dataclass
class Point:
    x: Any
    y: Any = 0


@dataclass
class Place:
    x: Any
    y: Any = 0


@dataclass(slots=True)
class Slim:
    x: Any


class Words(str):
    pass


class Row(list[Any]):
    pass


class Table(dict[str, Any]):
    pass


Pair = namedtuple("Pair", "x y")


class Options(BaseModel):
    model_config = ConfigDict(extra="allow")

    size: int = 1
    _private: int = PrivateAttr(0)


class OtherOptions(BaseModel):
    size: int = 1


class Box(BaseModel, Generic[T]):
    held: T


class Keyed:
    """Has something that can't be compared, and says what counts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client = object()

    def __pipeserve_cache_key__(self) -> object:
        return self.name


class KeyedToo(Keyed):
    pass


def function(x: int) -> int:
    return x


def with_private(value: int) -> Options:
    options = Options(size=1)
    options._private = value
    return options


def palette_image(*colours: int) -> Image.Image:
    image = Image.new("P", (1, 1))
    image.putpalette(colours)
    return image


def image_with(image: Image.Image, **info: object) -> Image.Image:
    image.info.update(info)
    return image


HASHED_AS_MISSING = 4904004565857947459
"""pandas' hash of it, in a nullable column, is that of a missing value."""

DIFFERENT: list[object] = [
    *(None, True, False, 1, 0, -1, 1.0, 0.0, -0.0, math.inf, -math.inf, math.nan, 1j, complex(0, -0.0)),
    *(complex(1, 0), ...),
    *(2**63, -(2**63), 2**64, 10**5000, 10**5000 + 1),
    *("", "1", "a", "ab", "b", "é", "e\u0301", "\ud800", "None", "x" * 256, "x" * 257, "x" * 5000, Words("a")),
    *(b"", b"1", b"a", b"b" * 300, b"b" * 301, bytearray(b"a"), bytearray(b""), memoryview(b"a")),
    memoryview(b"ab"),
    *([], (), {}, set(), frozenset(), Row(), Table(), deque(), OrderedDict(), defaultdict(list)),
    MappingProxyType({}),
    *([1], (1,), {1}, frozenset({1}), Row([1]), deque([1]), deque([1], 3), [1.0], [True], [[1]], [1, 1], [[1], 1]),
    [None],
    *(["asb", "c"], ["a", "bsc"], {"asb": "c"}, {"a": "bsc"}),
    *(["ab"], ["a", "b"], ["a", ["b"]], [["a"], "b"], ["", "ab"], ["ab", ""], [b"ab"], ("ab",), ["b", "a"]),
    *([1.0, 2.0], (1.0, 2.0), [1, 2], [1, 2.0], [math.nan], [0.0], [-0.0], [2**64], [2**64, 1], {2**64}),
    *({"a": 1}, {"a": 1.0}, {"a": "1"}, {"1": "a"}, {"a": None}, {"a": 1, "b": 2}, {"a": 2, "b": 1}),
    {"a": {"b": 2}},
    *([("a", 1)], ["a", 1], {"a", 1}, Counter(a=1), Table(a=1), OrderedDict(a=1), defaultdict(int, a=1)),
    *(OrderedDict([("a", 1), ("b", 2)]), OrderedDict([("b", 2), ("a", 1)]), defaultdict(list, a=1)),
    *(Point(1), Point(1.0), Place(1), Point(1, 2), Point(2, 1), Slim(1), Pair(1, 2), (1, 2), {"x": 1, "y": 2}),
    Pair(2, 1),
    *(Colour.RED, Colour.BLUE, Shade.RED, Level.ONE, Access.READ, Access.READ | Access.WRITE, Access(0)),
    *(Options(), Options(size=1), Options(size=2), OtherOptions(size=1), with_private(1)),
    *(Options.model_validate({"size": 1, "more": 1}), Options.model_validate({"size": 1, "more": 2})),
    *(Box[int](held=1), Box[float](held=1), Box[Colour](held=Colour.RED), Box[list[int]](held=[1]), Box(held=1)),
    *(SecretStr("a"), SecretStr("b"), SecretBytes(b"a"), AnyUrl("http://a.b/"), AnyUrl("http://a.c/")),
    *(datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, fold=1), date(2024, 1, 1)),
    datetime(2024, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
    datetime(2024, 1, 1, 1, tzinfo=ZoneInfo("UTC")),
    *(time(1), time(1, tzinfo=UTC), time(1, fold=1), timedelta(1), timedelta(0, 1), timedelta(0, 0, 1)),
    *(uuid.UUID(int=1), uuid.UUID(int=2), Decimal("1"), Decimal("1.0"), Decimal("-0"), Decimal("NaN"), Fraction(1)),
    Fraction(1, 2),
    *(PurePosixPath("a"), PureWindowsPath("a"), PurePosixPath("a/b"), Path("a"), range(1), range(2), range(1, 2)),
    range(0, 2, 2),
    *(function, sum, len, math.sqrt, int, bool, Point, Place, Options, Box[int], Box[float], Colour),
    np.mean,
    *(Keyed("a"), Keyed("b"), KeyedToo("a")),
    *(np.array([1, 2]), np.array([1, 2], "i4"), np.array([1, 2], ">i8"), np.array([1.0, 2.0]), np.array([[1, 2]])),
    np.array([2, 1]),
    *(np.array(1), np.array([]), np.zeros((0, 2)), np.zeros((2, 0)), np.array([], "i4"), np.array([True, True])),
    np.array([1, 1], "u1"),
    *(np.array(["a", "b"]), np.array(["a", "b"], object), np.array([b"a", b"b"]), np.array(["ab", ""], object)),
    np.array([1, "b"], object),
    *(np.array([1, True], object), np.array([1, 1], object), np.array([1, None], object)),
    np.array([[1], [1]], object),
    *(np.array(["a", "b"], np.dtypes.StringDType()), np.array(["a", "c"], np.dtypes.StringDType())),
    *(np.array([1, 2], "m8[s]"), np.array([1, 2], "M8[s]"), np.array([1, 2], "M8[ms]"), np.array([1, 2], "g")),
    np.array([1, 2], "c8"),
    *(np.array([(1, 2)], "i4,i4"), np.array([(2, 1)], "i4,i4"), np.array([(1, 2)], [("a", "i4"), ("b", "i4")])),
    *(np.int64(1), np.int32(1), np.float64(1), np.float32(1), np.bool_(True), np.str_("a"), np.datetime64(1, "s")),
    np.dtype("i4"),
    *(pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"b": [1, 2]}), pd.DataFrame({"a": [1.0, 2.0]})),
    pd.DataFrame({"a": [2, 1]}),
    *(pd.DataFrame({"a": [1, 2]}, index=[1, 2]), pd.DataFrame({"a": [1, 2]}, index=["x", "y"]), pd.DataFrame()),
    *(pd.DataFrame({"a": [1], "b": [2]}), pd.DataFrame({"b": [2], "a": [1]})),
    pd.DataFrame([[1, 2]], columns=["a", "a"]),
    *(pd.DataFrame({"a": ["1", "2"]}, dtype="string"), pd.DataFrame({"a": ["1", "2"]}, dtype=object)),
    pd.DataFrame({"a": [1, 2]}, dtype=object),
    *(pd.Series([1, 2]), pd.Series([1, 2], name="a"), pd.Series([1, None]), pd.Series([1, None], dtype="Int64")),
    pd.Series([1, 0], dtype="Int64"),
    *(pd.Series(["nan", "a"], dtype=object), pd.Series(["None", "a"], dtype="string")),
    *(pd.Series(["nan", "a"], dtype="string"), pd.Series([None, "a"], dtype="string")),
    pd.Series([None, "a"], dtype=object),
    *(pd.Series(["a", "b"], dtype="category"), pd.Series(pd.Categorical(["a", "b"], ["a", "b"], ordered=True))),
    *(pd.Series(pd.Categorical(["a", "b"], ["b", "a"])), pd.Series(pd.to_datetime(["2024"]))),
    pd.Series(pd.to_datetime(["2024"], utc=True)),
    *(pd.Index([1, 2]), pd.Index([1, 2], name="a"), pd.RangeIndex(2), pd.Index(["a", "b"])),
    pd.MultiIndex.from_tuples([(1, 2)]),
    *(pd.date_range("2024", periods=2), pd.date_range("2024", periods=2, tz="UTC")),
    pd.DatetimeIndex(["2024-01-01", "2024-01-02"]),
    *(pd.MultiIndex.from_tuples([(2, 1)]), pd.array([1, 2], dtype="Int64"), pd.Timestamp("2024")),
    pd.Timestamp("2024", tz="UTC"),
    *(pd.Timestamp("2024") + pd.Timedelta(1, "ns"), pd.Timedelta(1), pd.Period("2024"), pd.Period("2024-01")),
    pd.Interval(1, 2),
    *(pd.Interval(1, 2, closed="both"), pd.NaT, pd.NA),
    *(Image.new("L", (1, 2)), Image.new("L", (2, 1)), Image.new("L", (1, 2), 1), Image.new("RGB", (1, 2))),
    Image.new("1", (1, 2)),
    *(palette_image(0, 0, 0), palette_image(1, 0, 0), image_with(Image.new("L", (1, 2)), transparency=0)),
    *(pd.Series([HASHED_AS_MISSING], dtype="Int64"), pd.Series([None], dtype="Int64")),
]  # fmt: skip
