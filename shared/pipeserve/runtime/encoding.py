"""Values as JSON: what steps return, emit and keep as metadata.

Beyond JSON's own types: dataclasses, enums, dates, UUIDs, numpy arrays and numbers, pydantic models, sets, tuples,
paths, Decimals and bytes (base64). NaN and infinities become null, since JSON has no such numbers.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import PurePath
from typing import Any, cast

import orjson
from pydantic import BaseModel

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class NotJsonError(TypeError):
    """A value has no form in JSON. ``type_name`` is the type that has none."""

    def __init__(self, type_name: str) -> None:
        super().__init__(f"a value of type {type_name} can't be written as JSON")
        self.type_name = type_name


def to_json(value: Any) -> bytes:
    """``value`` as JSON. Raises NotJsonError, naming the type inside it that has no JSON form."""
    try:
        return orjson.dumps(value, default=_default, option=_OPTIONS)
    except TypeError as error:
        cause = error.__cause__
        if isinstance(cause, NotJsonError):
            raise cause from None
        # orjson's own refusals: recursion, an integer over 64 bits, text that is no UTF-8.
        raise NotJsonError(f"{type(value).__name__} ({error})") from None


def _default(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return orjson.Fragment(value.model_dump_json().encode())
    if isinstance(value, (set, frozenset)):
        return list(cast(set[object], value))
    if isinstance(value, (Decimal, PurePath)):
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if hasattr(value, "tolist"):  # a numpy array that orjson can't read in place (not contiguous), or of another dtype
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(cast(Mapping[object, object], value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(cast(Sequence[object], value))
    raise NotJsonError(f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins."))
