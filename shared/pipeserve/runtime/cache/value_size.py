"""How much memory a value holds, near enough to bound a cache, in a time that does not grow with the value."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain, islice
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, cast

_SAMPLE = 64  # of one container's items; the rest count as much as these on average
_VISITS = 2048  # values looked at in all: some milliseconds

_FOREIGN = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)  # would be there without the value

_Look = tuple[int, Iterable[object], int]
"""A value's own bytes; what else it holds, or a sample; how many these are in all."""


def size_of(value: object) -> int:
    """Bytes that ``value`` holds, its items and attributes included. Raises nothing.

    Exact for text, bytes and arrays of numbers. An estimate for containers of more than 64 items, for tables with
    columns of objects, and for what holds more than 2,048 values.
    """
    total = 0.0
    seen: dict[int, object] = {}  # what is held twice counts once; the value stands with its id to keep it
    waiting: deque[tuple[object, float]] = deque([(value, 1.0)])
    while waiting and len(seen) < _VISITS:
        item, weight = waiting.popleft()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        try:
            own, held, count = _look(item)
            sample = list(islice(held, _SAMPLE))
        # An author's object may raise anything when it is looked at. It counts for nothing then, which is near enough.
        except Exception:
            continue
        total += weight * own
        waiting.extend((each, weight * max(1.0, count / len(sample))) for each in sample)
    return int(total)


def _look(item: Any) -> _Look:
    kind: type = cast("type[Any]", type(item))
    own = sys.getsizeof(item)
    if isinstance(item, _FOREIGN):
        return 0, (), 0
    if isinstance(item, (list, tuple)):
        return _of_sequence(own, cast("Sequence[object]", item))
    if isinstance(item, dict):
        pairs = cast("Mapping[object, object]", item)
        return own, chain.from_iterable(pairs.items()), 2 * len(pairs)
    if isinstance(item, (set, frozenset, deque)):
        items = cast("AbstractSet[object] | deque[object]", item)
        return own, items, len(items)
    library = _LIBRARIES.get(kind.__module__.partition(".")[0])
    found = None if library is None else library(item)
    if found is not None:
        return found
    if isinstance(getattr(kind, "nbytes", None), property) or kind is memoryview:  # other libraries' arrays
        return int(item.nbytes), (), 0
    state = None if kind in _PLAIN else object.__getstate__(item)
    return own, () if state is None else (state,), 1


_PLAIN = (str, bytes, bytearray, int, float, bool, complex, type(None))


def _of_sequence(own: int, items: Sequence[object]) -> _Look:
    return own, items[:: -(-len(items) // _SAMPLE) or 1], len(items)


def _of_numpy(item: Any) -> _Look | None:
    numpy: Any = sys.modules["numpy"]
    if not isinstance(item, numpy.ndarray):
        return None
    if item.base is not None:  # a view keeps the whole alive
        return 0, (item.base,), 1
    if item.dtype.kind == "O":
        return _of_sequence(int(item.nbytes), item.reshape(-1))
    return int(item.nbytes), (), 0


def _of_pandas(item: Any) -> _Look | None:
    pandas: Any = sys.modules["pandas"]
    if not isinstance(item, (pandas.DataFrame, pandas.Series, pandas.Index)):
        return None
    rows = len(item)
    every = -(-rows // _SAMPLE) or 1
    sample = item[::every]
    cells = _bytes_of_table(sample, deep=True) - _bytes_of_table(sample, deep=False)
    return int(_bytes_of_table(item, deep=False) + cells * rows / max(1, len(sample))), (), 0


def _bytes_of_table(item: Any, *, deep: bool) -> float:
    used = item.memory_usage(deep=deep)
    return float(used.sum() if hasattr(used, "sum") else used)


def _of_image(item: Any) -> _Look | None:
    images: Any = sys.modules.get("PIL.Image")
    if images is None or not isinstance(item, images.Image):
        return None
    return item.width * item.height * (1 if item.mode in ("1", "L", "P") else 4), (), 0


_LIBRARIES: dict[str, Callable[[Any], _Look | None]] = {"numpy": _of_numpy, "pandas": _of_pandas, "PIL": _of_image}
