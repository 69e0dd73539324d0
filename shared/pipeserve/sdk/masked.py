"""Reads from annotations what of a type's values is masked.

A type is masked as a whole (``Secret[str]``), or in parts: fields of models, dataclasses, typed dicts and named
tuples, members of lists, dicts and tuples, at any depth. A type that masks nothing has no parts, so that pipelines
without such types pay nothing.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Mapping
from typing import (
    Annotated,
    Any,
    ForwardRef,
    NamedTuple,
    NotRequired,
    Required,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    is_typeddict,
)

from pydantic import AliasChoices, BaseModel, RootModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

from pipeserve.sdk.masked_parts import Each, Members, Parts, Places, Root, Whole, any_of
from pipeserve.sdk.secret import Mask, mask_of


class _Member(NamedTuple):
    name: str
    annotation: Any
    mask: Mask | None
    """Where the annotation does not carry it."""
    aliases: tuple[str, ...]
    """Its other names in JSON."""


def parts_of(annotation: Any) -> Parts | None:
    """What of the values of this type is masked; None: nothing."""
    return _read(annotation, {}) if _masks_any(annotation, []) else None


def _masks_any(annotation: Any, seen: list[Any]) -> bool:
    if _mask_of(annotation) is not None:
        return True
    kind = _plain(annotation)
    members = _members(kind)
    if members:
        if kind in seen:  # a type that holds itself
            return False
        seen.append(kind)
    return any(member.mask is not None or _masks_any(member.annotation, seen) for member in members) or any(
        _masks_any(argument, seen) for argument in get_args(kind)
    )


def _read(annotation: Any, known: dict[Any, Members]) -> Parts | None:
    mask = _mask_of(annotation)
    if mask is not None:
        return Whole(mask)
    kind = _plain(annotation)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return any_of([parts for choice in get_args(kind) if (parts := _read(choice, known)) is not None])
    if origin is tuple and Ellipsis not in get_args(kind):
        places = tuple(_read(argument, known) for argument in get_args(kind))
        return Places(places) if any(places) else None
    if members := _members(kind):
        return _read_members(kind, members, known)
    # A list, set, dict, iterator …: what is last among its arguments is what it holds.
    arguments = [argument for argument in get_args(kind) if argument is not Ellipsis]
    parts = _read(arguments[-1], known) if arguments else None
    return None if parts is None else Each(parts)


def _read_members(kind: Any, members: list[_Member], known: dict[Any, Members]) -> Parts | None:
    if kind in known:
        return known[kind]
    found = known[kind] = Members(get_origin(kind) or kind)
    for member in members:
        parts = _read(member.annotation, known) if member.mask is None else Whole(member.mask)
        found.add(member.name, parts, member.aliases)
    if not found.fields:
        return None
    if isinstance(kind, type) and issubclass(kind, RootModel):
        return Root(found.fields["root"])
    return found


def _mask_of(annotation: Any) -> Mask | None:
    if isinstance(annotation, (str, ForwardRef)):
        # A type that only a type checker, or a function's own names, know: what looks masked is masked.
        text = str(annotation)
        return Mask("redact") if "Redact[" in text else Mask("secret") if "Secret" in text else None
    return mask_of(annotation)


def _plain(annotation: Any) -> Any:
    """The type without what is said about it."""
    while True:
        if get_origin(annotation) in (Annotated, Required, NotRequired):
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        elif isinstance(annotation, TypeVar):
            annotation = annotation.__bound__ or Any
        else:
            return annotation


def _members(kind: Any) -> list[_Member]:
    """The fields of a type that has such."""
    origin: Any = get_origin(kind) or kind
    if not isinstance(origin, type) or origin in (SecretStr, SecretBytes):
        return []
    described: Mapping[str, FieldInfo] | None = None
    if issubclass(origin, BaseModel):
        described = origin.model_fields
    elif dataclasses.is_dataclass(cast(Any, origin)):
        described = getattr(cast(Any, origin), "__pydantic_fields__", None)
    elif not is_typeddict(cast(Any, origin)) and not (
        issubclass(origin, tuple) and hasattr(cast(Any, origin), "_fields")
    ):
        return []
    if described is None:
        hints = {name: _applied(hint, kind) for name, hint in _hints(cast(Any, origin)).items()}
        return [_Member(name, hint, None, ()) for name, hint in hints.items()]
    return [
        _Member(
            name,
            field.annotation,
            next((note for note in field.metadata if isinstance(note, Mask)), None),
            _aliases(field),
        )
        for name, field in described.items()
    ]


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except NameError:
        if sys.version_info >= (3, 14):  # annotations are code there: asking for their values raises again
            from annotationlib import Format, get_annotations

            return get_annotations(kind, format=Format.FORWARDREF)
        return dict(inspect.get_annotations(kind))


def _applied(hint: Any, kind: Any) -> Any:
    """The type of a field of ``Box[int]``, which its class knows as ``T``."""
    values: dict[Any, Any] = dict(zip(getattr(get_origin(kind), "__parameters__", ()), get_args(kind), strict=False))
    if isinstance(hint, TypeVar):
        return values.get(hint, hint)
    open_ones: tuple[Any, ...] = getattr(hint, "__parameters__", ())
    return hint[tuple(values.get(parameter, parameter) for parameter in open_ones)] if values and open_ones else hint


def _aliases(field: FieldInfo) -> tuple[str, ...]:
    choices = field.validation_alias
    several = choices.choices if isinstance(choices, AliasChoices) else [choices]
    return tuple(alias for alias in [field.alias, field.serialization_alias, *several] if isinstance(alias, str))
