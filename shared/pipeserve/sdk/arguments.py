"""Where a step call's argument comes from: a parameter, another result, the default, a constant, or a container."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Access = tuple[Literal["item", "attribute"], Any]
"""One step into a value: ``value[key]`` or ``value.name``."""


@dataclass(frozen=True, slots=True)
class FromParameter:
    """A pipeline parameter, or a part of it."""

    name: str
    path: tuple[Access, ...] = ()


@dataclass(frozen=True, slots=True)
class FromNode:
    """The result of another call, or a part of it."""

    node: str
    path: tuple[Access, ...] = ()


@dataclass(frozen=True, slots=True)
class Default:
    """The step's own default, which a request may override."""

    value: Any


@dataclass(frozen=True, slots=True)
class Constant:
    """A value written in the pipeline's body."""

    value: Any


@dataclass(frozen=True, slots=True)
class Collection:
    """A list, tuple, set or dict written in the pipeline's body; made anew for each run, so runs share nothing."""

    kind: type[Any]
    items: tuple[Argument, ...]
    keys: tuple[Any, ...] = ()
    """For a dict: its keys, in the order of ``items``."""


Argument = FromParameter | FromNode | Default | Constant | Collection


def sources(argument: Argument) -> Iterator[FromParameter | FromNode]:
    """Every parameter and result that ``argument`` takes from."""
    if isinstance(argument, (FromParameter, FromNode)):
        yield argument
    elif isinstance(argument, Collection):
        for item in argument.items:
            yield from sources(item)


def describe_argument(argument: Argument) -> str:
    """For people: ``parameter text``, ``step embed[0].vector``, ``default``, ``constant``."""
    if isinstance(argument, FromParameter):
        return f"parameter {argument.name}{_path(argument.path)}"
    if isinstance(argument, FromNode):
        return f"step {argument.node}{_path(argument.path)}"
    if isinstance(argument, Default):
        return "default"
    found = list(dict.fromkeys(describe_argument(source) for source in sources(argument)))
    return ", ".join(found) if found else "constant"


def _path(path: tuple[Access, ...]) -> str:
    return "".join(f"[{key!r}]" if kind == "item" else f".{key}" for kind, key in path)


Resolver = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""Takes the pipeline's parameters and the results so far, both by name; returns the argument's value."""


def resolver(argument: Argument) -> Resolver:
    """How ``argument`` gets its value in a run."""
    if isinstance(argument, FromParameter):
        return _reader(0, argument.name, argument.path)
    if isinstance(argument, FromNode):
        return _reader(1, argument.node, argument.path)
    if isinstance(argument, Collection):
        return _collector(argument)
    value = argument.value
    try:
        hash(value)
    except TypeError:
        # A default or constant that a step may change: each run gets its own, so none sees another's.
        return lambda parameters, results: copy.deepcopy(value)
    return lambda parameters, results: value


def _reader(which: int, name: str, path: tuple[Access, ...]) -> Resolver:
    if not path:
        return (
            (lambda parameters, results: parameters[name])
            if which == 0
            else (lambda parameters, results: results[name])
        )

    def read(parameters: Mapping[str, Any], results: Mapping[str, Any]) -> Any:
        value = (parameters if which == 0 else results)[name]
        for kind, key in path:
            value = value[key] if kind == "item" else getattr(value, key)
        return value

    return read


def _collector(argument: Collection) -> Resolver:
    items = [resolver(item) for item in argument.items]
    if argument.kind is dict:
        keys = argument.keys
        return lambda parameters, results: {
            key: item(parameters, results) for key, item in zip(keys, items, strict=True)
        }
    kind = argument.kind
    return lambda parameters, results: kind([item(parameters, results) for item in items])
