"""Step results as bytes that another process can read: for checkpoints and for the shared part of the step cache.

A result comes back equal and of its own type, or it is refused: a step downstream must not notice whether its input was
computed or read. So what is written as JSON is read again at once and compared. Never pickle: whoever can write to the
store could run code here.

The first line is JSON and says what follows: ``json`` (by pydantic, for the declared type), ``materializer`` (its
bytes), or ``tuple``, ``list`` and ``dict`` (members one after the other, each with a first line of its own).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, cast, get_args, get_origin

import orjson
from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
from pydantic_core import PydanticSerializationError

from pipeserve.runtime.values.materializers import Materializers, name_of
from pipeserve.sdk.materializer import Materializer, NotStorableError
from pipeserve.sdk.stream import Streamed

__all__ = ["Codec", "NotStorableError", "UnreadableError"]

_CONFIG = ConfigDict(ser_json_inf_nan="constants", ser_json_bytes="base64", val_json_bytes="base64")


class UnreadableError(ValueError):
    """Bytes that no value can be made of here: another version wrote them, or the type has changed."""


class Codec:
    """Writes and reads values of declared types. Thread-safe."""

    def __init__(self, materializers: Materializers) -> None:
        self._materializers = materializers
        self._adapters: dict[Any, TypeAdapter[Any]] = {}

    def encode(self, value: Any, annotation: Any) -> bytes:
        """``value``, which is declared as ``annotation``, as bytes. Raises NotStorableError, saying why."""
        if type(value) is Streamed:  # it stands for the list that the step's type declares
            value = list(cast(Streamed[Any], value))
        materializer = self._materializers.find(value)
        if materializer is not None:
            return _with_header({"kind": "materializer", **_described(materializer)}, _dump(materializer, value))
        try:
            return _with_header({"kind": "json"}, self._to_json(value, annotation))
        except NotStorableError:
            if type(value) in (tuple, list, dict) and self._holds_materialized(value):
                return self._encode_members(value, annotation)
            raise

    def decode(self, data: bytes, annotation: Any) -> Any:
        """What :meth:`encode` was given. Raises ValueError (UnreadableError or pydantic's) for anything else."""
        line, _, body = data.partition(b"\n")
        try:
            header: dict[str, Any] = orjson.loads(line)
            kind = header["kind"]
            if kind == "json":
                return self._adapter(annotation).validate_json(body)
            if kind == "materializer":
                return self._load(header["type"], body)
            return self._decode_members(kind, header, body, annotation)
        except (KeyError, TypeError, AttributeError) as error:
            raise UnreadableError(f"no stored value: {error!r}") from None

    # ---- JSON

    def _to_json(self, value: Any, annotation: Any) -> bytes:
        adapter = self._adapter(annotation)
        try:
            data = adapter.dump_json(value, by_alias=True, round_trip=True, warnings="error")
            back = adapter.validate_json(data)
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
            reason = str(error).splitlines()[0].rstrip(":")  # further lines repeat the value, which may be secret
            raise NotStorableError(f"a value of type {_name(type(value))} has no stored form: {reason}") from None
        if not _same(value, back):
            raise NotStorableError(
                f"a value of type {_name(type(value))}, declared as {_name(annotation)}, would not come back from JSON "
                "as it was; declare its type more closely"
            )
        return data

    def _adapter(self, annotation: Any) -> TypeAdapter[Any]:
        try:
            found = self._adapters.get(annotation)
        except TypeError:  # an annotation with something unhashable in it
            return _make_adapter(annotation)
        if found is None:
            found = self._adapters[annotation] = _make_adapter(annotation)
        return found

    # ---- materializers, alone and as members of plain containers

    def _load(self, name: str, body: bytes) -> Any:
        materializer = self._materializers.named(name)
        if materializer is None:
            raise UnreadableError(f"there is no materializer for {name}")
        try:
            return materializer.load(body)
        except Exception as error:  # a library's or the author's: whatever it is, the bytes are of no use
            raise UnreadableError(f"{type(materializer).__name__} can't read what was stored: {error!r}") from error

    def _holds_materialized(self, value: Any) -> bool:
        members: Iterable[Any] = cast(dict[Any, Any], value).values() if type(value) is dict else value
        return any(
            self._materializers.find(member) is not None
            or (type(member) in (tuple, list, dict) and self._holds_materialized(member))
            for member in members
        )

    def _encode_members(self, value: Any, annotation: Any) -> bytes:
        kind = type(value).__name__
        header: dict[str, Any] = {"kind": kind}
        members: Sequence[Any] = value
        if kind == "dict":
            keys = list(cast(dict[Any, Any], value))
            if not all(type(key) is str for key in keys):
                raise NotStorableError("a dict of arrays, tables, … must have text for keys to have a stored form")
            header["keys"] = keys
            members = list(cast(dict[Any, Any], value).values())
        types = _member_types(kind, annotation, len(members))
        parts = [self.encode(member, declared) for member, declared in zip(members, types, strict=True)]
        return _with_header(header | {"sizes": [len(part) for part in parts]}, b"".join(parts))

    def _decode_members(self, kind: str, header: dict[str, Any], body: bytes, annotation: Any) -> Any:
        sizes: list[int] = header["sizes"]
        members: list[Any] = []
        start = 0
        for size, declared in zip(sizes, _member_types(kind, annotation, len(sizes)), strict=True):
            members.append(self.decode(body[start : start + size], declared))
            start += size
        match kind:
            case "tuple":
                return tuple(members)
            case "list":
                return members
            case "dict":
                return dict(zip(header["keys"], members, strict=True))
            case _:
                raise UnreadableError(f"a stored value of the unknown kind {kind!r}")


def _with_header(header: dict[str, Any], body: bytes) -> bytes:
    return b"%b\n%b" % (orjson.dumps(header), body)


def _described(materializer: Materializer[Any]) -> dict[str, str]:
    return {"type": name_of(materializer), "media_type": materializer.media_type}


def _dump(materializer: Materializer[Any], value: Any) -> bytes:
    try:
        return materializer.dump(value)
    except NotStorableError:
        raise
    except Exception as error:  # a library's or the author's: whatever it is, there is nothing to store
        raise NotStorableError(f"{type(materializer).__name__} can't store it: {error!r}") from error


def _make_adapter(annotation: Any) -> TypeAdapter[Any]:
    for config in (_CONFIG, None):  # None: a model, dataclass or TypedDict brings its own
        try:
            return TypeAdapter(annotation, config=config)
        except (PydanticUserError, PydanticUndefinedAnnotation):
            continue
    return TypeAdapter(Any, config=_CONFIG)  # `Array | None`, say: the None has a form all the same


def _member_types(kind: str, annotation: Any, count: int) -> list[Any]:
    """How each member of a container is declared."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    inner = get_args(annotation)
    origin = get_origin(annotation)
    if kind == "tuple" and origin is tuple:
        if len(inner) == 2 and inner[1] is Ellipsis:
            return [inner[0]] * count
        if len(inner) == count:
            return list(inner)
    if kind == "list" and origin is list:
        return [inner[0]] * count
    if kind == "dict" and origin is dict:
        return [inner[1]] * count
    return [Any] * count


def _same(value: Any, back: Any) -> bool:
    """Whether ``back`` may stand for ``value``: equal, and of the same types all the way down."""
    if type(value) is not type(back):  # `-> float` may return 3, or numpy's own float
        return (
            type(back) is float and isinstance(value, (int, float)) and type(value) is not bool and _equal(value, back)
        )
    if isinstance(value, float):
        return _equal(value, back)
    if isinstance(value, dict):
        mine = cast(dict[Any, Any], value)  # in any order: pydantic writes a TypedDict as it is declared
        return _types(mine) == _types(back) and all(key in back and _same(mine[key], back[key]) for key in mine)
    if isinstance(value, (list, tuple)):
        members = zip(cast(Sequence[Any], value), back, strict=False)
        return len(cast(Sequence[Any], value)) == len(back) and all(_same(mine, other) for mine, other in members)
    if isinstance(value, (set, frozenset)):
        return value == back and _types(cast(set[Any], value)) == _types(back)
    if isinstance(value, BaseModel):
        return _same_models(value, back)
    if is_dataclass(value):
        return all(_same(getattr(value, field.name), getattr(back, field.name)) for field in fields(value))
    try:
        return bool(value == back)
    except (TypeError, ValueError):  # an array inside: it does not say yes or no
        return False


def _same_models(value: BaseModel, back: BaseModel) -> bool:
    return (
        all(_same(getattr(value, name), getattr(back, name)) for name in type(value).model_fields)
        and _same(value.__pydantic_extra__, back.__pydantic_extra__)
        and _same(value.__pydantic_private__, back.__pydantic_private__)
    )


def _equal(value: float, back: float) -> bool:
    return value == back or (value != value and back != back)  # NaN is not equal to itself


def _types(members: Iterable[Any]) -> list[str]:
    return sorted(_name(type(member)) for member in members)


def _name(annotation: Any) -> str:
    return getattr(annotation, "__qualname__", None) or str(annotation).removeprefix("typing.")
