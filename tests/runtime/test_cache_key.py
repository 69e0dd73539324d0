"""Cache keys: equal for calls that a step can't tell apart, different for others, refused where nobody knows."""

from __future__ import annotations

import copy
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.runtime.tricky_values import DIFFERENT, Keyed, Options, Point, Table

from pipeserve.runtime.cache.key import CacheKey, UnhashableArgumentError, cache_key
from pipeserve.sdk.cache import Cache


def key_of(value: object) -> str:
    return cache_key("step", b"code", {"x": value}, Cache()).digest


def refusal(value: object) -> UnhashableArgumentError:
    with pytest.raises(UnhashableArgumentError) as caught:
        key_of(value)
    return caught.value


def test_values_that_differ_have_keys_that_differ() -> None:
    for wrap in (lambda value: value, lambda value: [value], lambda value: {"a": value}):
        by_key: dict[str, object] = {}
        for value in DIFFERENT:
            key = key_of(wrap(value))
            assert key not in by_key, f"{value!r} has the key of {by_key[key]!r}"
            by_key[key] = value


def test_a_copy_has_the_same_key() -> None:
    for value in DIFFERENT:
        if not isinstance(value, memoryview | MappingProxyType):  # those can't be copied
            assert key_of(copy.deepcopy(value)) == key_of(value), value


EQUAL: list[Callable[[], tuple[object, object]]] = [
    lambda: (math.nan, -float("nan")),
    lambda: (math.nan, math.inf - math.inf),
    lambda: ([math.nan, 1.0], [-math.nan, 1.0]),
    lambda: (memoryview(b"abcd")[::2], memoryview(b"ac")),
    lambda: ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    lambda: ({"a": {"x": 1, "y": [2]}}, {"a": {"y": [2], "x": 1}}),
    lambda: ({*range(100)}, {*reversed(range(100))}),
    lambda: (frozenset("abc"), frozenset("cba")),
    lambda: (Table(a=1, b=2), Table(b=2, a=1)),
    lambda: (Options.model_validate({"a": 1, "b": 2}), Options.model_validate({"b": 2, "a": 1})),
    lambda: (np.arange(6).reshape(2, 3).T, np.array([[0, 3], [1, 4], [2, 5]])),
    lambda: (np.arange(10)[::2], np.array([0, 2, 4, 6, 8])),
    lambda: (np.asfortranarray(np.ones((3, 2))), np.ones((3, 2))),
    lambda: (np.array([[1, "a"]], object).T, np.array([[1], ["a"]], object)),
    lambda: (np.array([1, 2], "g") / 3, np.array([1, 2], "g") / 3),
    lambda: (np.broadcast_to(np.int64(1), (3,)), np.ones(3, "i8")),
    lambda: (pd.DataFrame({"a": [1, 2], "b": ["x", None]})[::-1][::-1], pd.DataFrame({"a": [1, 2], "b": ["x", None]})),
    lambda: (pd.DataFrame(np.ones((2, 2))), pd.DataFrame({0: [1.0, 1.0], 1: [1.0, 1.0]}, columns=pd.RangeIndex(2))),
]


@pytest.mark.parametrize("values", EQUAL)
def test_order_and_layout_do_not_count(values: Callable[[], tuple[object, object]]) -> None:
    one, other = values()
    assert key_of(one) == key_of(other)


def test_the_bytes_between_the_fields_of_a_structured_array_do_not_count() -> None:
    dtype = np.dtype([("a", "u1"), ("b", "i4")], align=True)
    one, other = (np.frombuffer(bytes([1, filler, filler, filler, 2, 0, 0, 0]), dtype) for filler in (0, 255))
    assert one.tobytes() != other.tobytes()
    assert key_of(one) == key_of(other)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.decimals().filter(lambda number: not number.is_snan()),
)
hashables = st.recursive(
    scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.sets(hashables, max_size=4)
        | st.builds(Point, inner, inner)
    ),
    max_leaves=12,
)


def exactly(value: Any) -> object:
    """Something hashable that is equal for two values only if they are alike in type and content."""
    kind = type(value).__name__
    if isinstance(value, dict):
        return kind, frozenset((exactly(key), exactly(item)) for key, item in value.items())
    if isinstance(value, set | frozenset):
        return kind, frozenset(map(exactly, value))
    if isinstance(value, list | tuple):
        return kind, tuple(map(exactly, value))
    if isinstance(value, Point):
        return kind, exactly(value.x), exactly(value.y)
    return kind, "nan" if isinstance(value, float) and math.isnan(value) else repr(value)


@given(values, values)
def test_keys_are_equal_for_what_is_exactly_equal_and_for_nothing_else(one: object, other: object) -> None:
    assert (key_of(one) == key_of(other)) == (exactly(one) == exactly(other))


def in_another_order(value: Any, random: Any) -> Any:
    """An equal value whose dicts and sets were filled in another order."""
    if isinstance(value, dict):
        pairs = list(value.items())
        random.shuffle(pairs)
        return {key: in_another_order(item, random) for key, item in pairs}
    if isinstance(value, set):
        items = list(value)
        random.shuffle(items)
        return set(items)
    if isinstance(value, list | tuple):
        return type(value)(in_another_order(item, random) for item in value)
    return value


@given(values, st.randoms(use_true_random=False))
def test_the_order_of_dicts_and_sets_never_counts(value: object, random: Any) -> None:
    assert key_of(in_another_order(value, random)) == key_of(value)


def test_a_key_names_its_parts_and_the_order_of_arguments_does_not_count() -> None:
    key = cache_key("step", b"code", {"x": 1, "name": "a"}, Cache())
    assert [name for name, _ in key.parts] == ["code", "name", "x"]
    assert key.parts[0] == ("code", b"code")
    assert all(len(part) == 16 for _, part in key.parts[1:])
    assert key == cache_key("step", b"code", {"name": "a", "x": 1}, Cache())
    assert hash(key) == hash(CacheKey(key.digest, key.parts))
    int(key.digest, 16)


def test_the_step_its_code_and_the_names_of_its_arguments_count() -> None:
    keys = {
        cache_key(step, code, arguments, Cache()).digest
        for step in ("a", "b")
        for code in (b"1", b"2")
        for arguments in ({}, {"x": 1}, {"y": 1}, {"x": 1, "y": 1}, {"x": 1, "y": None})
    }
    assert len(keys) == 20


def test_only_what_differs_differs_in_the_parts() -> None:
    one, other = (dict(cache_key("step", b"c", {"a": 1, "b": b}, Cache()).parts) for b in (1, 2))
    assert {name for name in one if one[name] != other[name]} == {"b"}


def test_a_key_function_says_what_counts() -> None:
    policy = Cache(key=lambda image, user: image["id"])
    one = cache_key("step", b"c", {"image": {"id": 1, "at": 5}, "user": "a"}, policy)
    assert [name for name, _ in one.parts] == ["code", "key"]
    assert one == cache_key("step", b"c", {"image": {"id": 1, "at": 6}, "user": object()}, policy)
    assert one != cache_key("step", b"c", {"image": {"id": 2, "at": 5}, "user": "a"}, policy)


def test_a_key_function_that_raises_makes_the_call_unhashable_without_telling_values() -> None:
    def key(x: int) -> object:
        raise LookupError("no image hunter2")

    with pytest.raises(UnhashableArgumentError, match=r"its key function raised LookupError\.") as caught:
        cache_key("step", b"c", {"x": 1}, Cache(key=key))
    assert caught.value.argument == "key"
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UnhashableArgumentError, match="TypeError"):
        cache_key("step", b"c", {"y": 1}, Cache(key=key))
    with pytest.raises(UnhashableArgumentError, match="argument 'key' is a value of type object"):
        cache_key("step", b"c", {"x": 1}, Cache(key=lambda x: object()))


class Opaque:
    pass


class Raises:
    def __pipeserve_cache_key__(self) -> object:
        raise RuntimeError("no connection")


class Counted(list[Any]):
    """Knows how often it was looked through."""

    looks = 0

    def __iter__(self) -> Iterator[Any]:
        type(self).looks += 1
        return super().__iter__()


@dataclass
class Holder:
    held: Any


def local_function() -> object:
    def inner() -> None: ...

    return inner


def local_class() -> type:
    @dataclass
    class Inner:
        x: int = 1

    return Inner


UNHASHABLE: list[tuple[Callable[[], object], str]] = [
    (object, "object"),
    (Opaque, "Opaque"),
    (lambda: lambda: 1, "function"),
    (local_function, "function"),
    (local_class, "Inner"),
    (lambda: [local_class()()], "Inner"),
    (lambda: [].append, "builtin_function_or_method"),
    (lambda: iter([]), "list_iterator"),
    (lambda: (item for item in ()), "generator"),
    (lambda: io.BytesIO(b"a"), "BytesIO"),
    (lambda: np.random.default_rng(1), "Generator"),
    (lambda: np.ma.array([1], mask=[True]), "MaskedArray"),
    (lambda: np.array([Opaque()]), "Opaque"),
    (lambda: pd.Series([Opaque()]), "Opaque"),
    (lambda: Holder({"deep": [Opaque()]}), "Opaque"),
    (lambda: {Opaque(): 1}, "Opaque"),
    (Raises, "Raises"),
]


@pytest.mark.parametrize(("make", "type_name"), UNHASHABLE)
def test_what_nobody_can_compare_is_refused_in_a_sentence(make: Callable[[], object], type_name: str) -> None:
    error = refusal(make())
    assert error.argument == "x"
    assert error.type_name.rpartition(".")[2] == type_name
    assert str(error).startswith("The call can't be cached: ")
    assert "argument 'x'" in str(error)
    assert str(error).endswith(".")


def test_a_value_inside_itself_is_refused() -> None:
    items: list[Any] = []
    items.append(items)
    table: dict[str, Any] = {}
    table["again"] = [table]
    holder = Holder(None)
    holder.held = (holder,)
    array = np.empty(1, object)
    array[0] = array
    for value in (items, table, holder, array):
        assert "contains itself" in str(refusal(value))


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {"next": value}, Holder, lambda value: (value,)])
def test_deep_nesting_is_refused_and_breaks_nothing(wrap: Callable[[Any], Any]) -> None:
    value: Any = None
    for _ in range(50):
        value = wrap(value)
    assert key_of(value)
    for _ in range(5000):
        value = wrap(value)
    assert "values deep" in str(refusal(value))


def test_what_is_held_many_times_is_looked_at_once() -> None:
    key_of(Counted([1]))
    once, Counted.looks = Counted.looks, 0
    value: Any = Counted([1])
    for _ in range(60):
        value = [value, value]  # 2 ** 60 ways lead to it
    key_of(value)
    assert Counted.looks == once > 0


def test_an_object_may_say_what_counts() -> None:
    assert key_of(Keyed("a")) == key_of(Keyed("a"))  # though each holds something that can't be compared
    assert key_of([Keyed("a")]) != key_of([Keyed("b")])


def test_an_image_from_a_file_has_a_key_and_an_animation_has_none() -> None:
    def opened(kind: str, **options: Any) -> Image.Image:
        file = io.BytesIO()
        Image.new("RGB", (4, 4), "red").save(file, kind, **options)
        return Image.open(io.BytesIO(file.getvalue()))

    assert key_of(opened("PNG")) == key_of(opened("PNG"))
    assert key_of(opened("JPEG", dpi=(72, 72))) == key_of(opened("JPEG", dpi=(72, 72)))
    assert key_of(opened("TIFF", dpi=(72, 72))) == key_of(opened("TIFF", dpi=(72, 72)))
    assert key_of(opened("PNG")) != key_of(Image.new("RGB", (4, 4), "red"))
    frames = [Image.new("RGB", (4, 4), "blue")]
    assert "more than one frame" in str(refusal(opened("GIF", save_all=True, append_images=frames)))


def test_keys_are_the_same_in_another_process() -> None:
    value = {"names": {"a", "b", "c"}, "point": [1.5, "x" * 1000], "path": PurePosixPath("a")}
    program = (
        "from pathlib import PurePosixPath; from pipeserve import Cache;"
        "from pipeserve.runtime.cache.key import cache_key;"
        f"print(cache_key('step', b'code', {{'x': {value!r}}}, Cache()).digest)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == key_of(value)


def test_making_keys_imports_no_heavy_library() -> None:
    program = (
        "import sys, json; from pipeserve.runtime.cache.key import cache_key; from pipeserve import Cache;"
        "cache_key('step', b'code', {'x': [1, 'a', {}], 'y': Cache()}, Cache());"
        "print(json.dumps(sorted({'numpy', 'pandas', 'PIL'} & set(sys.modules))))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == []
