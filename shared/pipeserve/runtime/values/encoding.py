"""Values as JSON: what steps return, emit and keep as metadata.

Beyond JSON's own types: dataclasses, enums, dates, UUIDs, numpy arrays and numbers, pydantic models, sets, tuples,
paths, Decimals and bytes (base64); and what has a materializer, such as pandas tables (a list of records) and PIL
images (PNG in base64). NaN and infinities become null, since JSON has no such numbers.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from decimal import Decimal
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

import orjson
from pydantic import BaseModel

if TYPE_CHECKING:
    from pipeserve.runtime.values.materializers import Materializers

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class NotJsonError(TypeError):
    """A value has no form in JSON. ``type_name`` is the type that has none."""

    def __init__(self, type_name: str) -> None:
        super().__init__(f"a value of type {type_name} can't be written as JSON")
        self.type_name = type_name


def to_json(value: Any, materializers: Materializers | None = None) -> bytes:
    """``value`` as JSON. Raises NotJsonError, naming the type inside it that has no JSON form.

    ``materializers`` say how their types stand in JSON.
    """
    default, options = _default, _OPTIONS
    if materializers is not None:
        default = _Default(materializers)
        options = materializers.json_options | orjson.OPT_NON_STR_KEYS
    try:
        return orjson.dumps(value, default=default, option=options)
    except TypeError as error:
        cause = error.__cause__
        if isinstance(cause, NotJsonError):
            raise cause from None
        # orjson's own refusals (recursion, an integer over 64 bits, text that is no UTF-8), or a materializer's.
        raise NotJsonError(f"{type(value).__name__} ({error if cause is None else cause})") from None


class _Default:
    """What orjson calls for types that it does not know, or must not write itself."""

    __slots__ = ("_materializers",)

    def __init__(self, materializers: Materializers) -> None:
        self._materializers = materializers

    def __call__(self, value: Any) -> Any:
        materializer = self._materializers.find(value)
        return _default(value) if materializer is None else materializer.as_json(value)


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
    if is_dataclass(value) and not isinstance(value, type):  # orjson left it to us, because of an author's materializer
        return {field.name: getattr(value, field.name) for field in fields(value) if not field.name.startswith("_")}
    if isinstance(value, str):  # the same, as are the subclasses of other types that JSON has
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return dict(cast(Mapping[object, object], value))
    if isinstance(value, Sequence):
        return list(cast(Sequence[object], value))
    raise NotJsonError(f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins."))
