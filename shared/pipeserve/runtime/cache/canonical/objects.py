"""The forms of objects: an author's own types, pydantic models, enums, and what prints all that it is."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import AnyUrl, BaseModel, Secret, SecretBytes, SecretStr

from pipeserve.runtime.cache.canonical.data import data_form
from pipeserve.runtime.cache.canonical.encoding import (
    NoCanonicalFormError,
    instance,
    joined,
    kind_of,
    text_form,
    type_name,
)
from pipeserve.runtime.cache.canonical.values import COMPOUNDS, LEAVES, Compound, importable

if TYPE_CHECKING:
    from pipeserve.runtime.cache.canonical.forms import CanonicalForms


def object_form(forms: CanonicalForms, value: object) -> bytes:
    """The form of what is no plain value of Python's own. Raises NoCanonicalFormError."""
    kind = type(value)
    own: Any = getattr(kind, "__pipeserve_cache_key__", None)
    if own is not None:
        return joined(b"K", [text_form(type_name(kind)), forms.form(own(value))])
    data = data_form(forms, value)
    if data is not None:
        return data
    for base, form in _OBJECTS:
        if isinstance(value, base):
            return form(forms, value)
    for base in _SUBCLASSED:
        if isinstance(value, base):
            return _subclassed(forms, value, base)
    if dataclasses.is_dataclass(value):
        return _named(forms, kind, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if callable(value) and hasattr(value, "__qualname__"):  # a compiled function, or one with functools.cache
        return importable(forms, value)
    raise NoCanonicalFormError(kind, "has no content that can be compared; it may define __pipeserve_cache_key__()")


def _named(forms: CanonicalForms, kind: type, members: Mapping[str, Any]) -> bytes:
    return instance(kind, *(forms.form(each) for member in members.items() for each in member))


def _subclassed(forms: CanonicalForms, value: Any, base: type) -> bytes:
    """An author's own kind of str, list … with its content and whatever attributes it has been given."""
    leaf = LEAVES.get(base)
    content = COMPOUNDS[base](forms, value) if leaf is None else leaf(value)
    return instance(kind_of(value), content, forms.form(object.__getstate__(value)))


def _enum(forms: CanonicalForms, value: Enum) -> bytes:
    """By name; and by value where that is plain, as a combination of flags has no name."""
    plain = forms.form(value.value) if type(value.value) in LEAVES else b""
    return instance(kind_of(value), forms.form(value.name), plain)


def _secret(forms: CanonicalForms, value: Secret[Any] | SecretStr | SecretBytes) -> bytes:
    return instance(kind_of(value), forms.form(value.get_secret_value()))


def _model(forms: CanonicalForms, value: BaseModel) -> bytes:
    """A pydantic model: its fields, what else it was given, its private attributes, and which fields were set."""
    kind = type(value)
    held = {name: value.__dict__[name] for name in kind.model_fields if name in value.__dict__}
    return _named(
        forms,
        kind,
        {
            "fields": held,
            "extra": value.__pydantic_extra__,
            "private": value.__pydantic_private__,
            "set": value.model_fields_set,  # model_dump(exclude_unset=True) shows them
        },
    )


def _text(forms: CanonicalForms, value: Any) -> bytes:
    return instance(kind_of(value), text_form(str(value)))


_OBJECTS: list[tuple[type | tuple[type, ...], Compound]] = [
    (type, importable),  # a class of another metaclass
    (Enum, _enum),
    ((SecretStr, SecretBytes, Secret), _secret),
    (BaseModel, _model),
    (PurePath, _text),
    ((AnyUrl, ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network), _text),
]

# A class comes before its bases: an OrderedDict is a dict, a datetime a date.
_SUBCLASSED: list[type] = [
    *(str, int, float, bytes, bytearray, tuple, list, OrderedDict, defaultdict, dict, set, frozenset, deque),
    *(datetime, date, time, timedelta, Decimal, Fraction, UUID, complex),
]
