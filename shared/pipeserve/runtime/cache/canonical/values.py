"""The forms of Python's own values, by their exact type."""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from struct import Struct
from types import BuiltinFunctionType, FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

from pipeserve.runtime.cache.canonical.encoding import (
    INLINE,
    NoCanonicalFormError,
    digest,
    joined,
    name_form,
    text_form,
)

if TYPE_CHECKING:
    from pipeserve.runtime.cache.canonical.forms import CanonicalForms

_MARKED_DOUBLE = Struct("<cd").pack
_NAN = _MARKED_DOUBLE(b"f", float("nan"))  # there are many, and all count as one

# ---- values that hold no others


def _none(_value: None) -> bytes:
    return b"N"


def _bool(value: bool) -> bytes:
    return b"T" if value else b"F"


def _int(value: int) -> bytes:
    return b"i%x" % value  # hexadecimal: decimal digits are quadratic, and limited to 4,300


def _float(value: float) -> bytes:
    return _MARKED_DOUBLE(b"f", value) if value == value else _NAN


def _bytes(value: bytes) -> bytes:
    return b"b" + value if len(value) <= INLINE else b"B" + digest(value)


Leaf = Callable[[Any], bytes]

LEAVES: dict[type, Leaf] = {
    type(None): _none,
    bool: _bool,
    int: _int,
    float: _float,
    str: text_form,
    bytes: _bytes,
    complex: lambda value: b"c" + _float(value.real) + _float(value.imag),
    type(...): lambda _value: b".",
    date: lambda value: b"d" + date.isoformat(value).encode(),
    timedelta: lambda value: b"D%d/%d/%d" % (value.days, value.seconds, value.microseconds),
    Decimal: lambda value: b"e" + str(value).encode(),  # 1.0 and 1.00 are equal and print differently
    Fraction: lambda value: b"q%x/%x" % (value.numerator, value.denominator),
    UUID: lambda value: b"u" + value.bytes,
    range: lambda value: b"r%x/%x/%x" % (value.start, value.stop, value.step),
}
"""What gives the form of a value of exactly this type, which holds no others. It raises nothing."""


# ---- values that hold others

Compound = Callable[["CanonicalForms", Any], bytes]


def _sequence(mark: bytes, floats: bytes, ints: bytes) -> Compound:
    """A sequence's form. One of floats or of ints only is packed as a whole, some ten times as fast."""

    def form(forms: CanonicalForms, value: Iterable[Any]) -> bytes:
        kinds = set(map(type, value))
        if kinds == {float}:
            total = sum(value)
            if total == total:  # so none of them is a NaN
                return floats + array("d", value).tobytes()
        elif kinds == {int}:
            try:
                return ints + array("q", value).tobytes()
            except OverflowError:
                pass
        return joined(mark, [forms.form(item) for item in value])

    return form


_list = _sequence(b"l", b"m", b"n")
_tuple = _sequence(b"t", b"v", b"w")


def _dict(forms: CanonicalForms, value: Mapping[Any, Any]) -> bytes:
    pairs = sorted((forms.form(key), forms.form(item)) for key, item in value.items())
    return joined(b"{", [form for pair in pairs for form in pair])


def _ordered_dict(forms: CanonicalForms, value: Mapping[Any, Any]) -> bytes:
    return joined(b"[", [forms.form(each) for pair in value.items() for each in pair])


def _default_dict(forms: CanonicalForms, value: defaultdict[Any, Any]) -> bytes:
    return joined(b"?", [_dict(forms, value), forms.form(value.default_factory)])


def _set(forms: CanonicalForms, value: Iterable[Any]) -> bytes:
    return joined(b"S", sorted(forms.form(item) for item in value))


def _frozenset(forms: CanonicalForms, value: Iterable[Any]) -> bytes:
    return joined(b"Z", sorted(forms.form(item) for item in value))


def _deque(forms: CanonicalForms, value: deque[Any]) -> bytes:
    return joined(b"Q", [_list(forms, list(value)), forms.form(value.maxlen)])


def _bytearray(_forms: CanonicalForms, value: bytearray) -> bytes:
    return b"y" + digest(value)


def _memoryview(forms: CanonicalForms, value: memoryview) -> bytes:
    return joined(b"Y", [text_form(value.format), forms.form(value.shape), digest(value.tobytes())])


def _mapping_proxy(forms: CanonicalForms, value: Mapping[Any, Any]) -> bytes:
    return b"P" + _dict(forms, value)


def _datetime(forms: CanonicalForms, value: datetime) -> bytes:
    wall = datetime.isoformat(value)  # with the offset: equal moments in different zones print differently
    return joined(b"M", [text_form(wall), b"%d" % value.fold, forms.form(value.tzinfo)])


def _time(forms: CanonicalForms, value: time) -> bytes:
    return joined(b"h", [text_form(time.isoformat(value)), b"%d" % value.fold, forms.form(value.tzinfo)])


def _timezone(forms: CanonicalForms, value: tzinfo) -> bytes:
    return joined(b"z", [forms.form(value.utcoffset(None)), forms.form(value.tzname(None))])


def _zone_info(_forms: CanonicalForms, value: ZoneInfo) -> bytes:
    if value.key is None:  # pyright: ignore[reportUnnecessaryComparison]  # made from a file, whatever the stub says
        raise NoCanonicalFormError(ZoneInfo, "has no key")
    return b"k" + value.key.encode()


def _pattern(forms: CanonicalForms, value: re.Pattern[Any]) -> bytes:
    return joined(b"R", [forms.form(value.pattern), forms.form(value.flags)])


def importable(_forms: CanonicalForms, value: Any) -> bytes:
    """A class or function by its name."""
    return b"I" + name_form(value)


COMPOUNDS: dict[type, Compound] = {
    list: _list,
    tuple: _tuple,
    dict: _dict,
    OrderedDict: _ordered_dict,
    defaultdict: _default_dict,
    set: _set,
    frozenset: _frozenset,
    deque: _deque,
    bytearray: _bytearray,
    memoryview: _memoryview,
    MappingProxyType: _mapping_proxy,
    datetime: _datetime,
    time: _time,
    timezone: _timezone,
    ZoneInfo: _zone_info,
    re.Pattern: _pattern,
    type: importable,
    FunctionType: importable,
    BuiltinFunctionType: importable,
}
"""What gives the form of a value of exactly this type, by way of the forms of what it holds."""
