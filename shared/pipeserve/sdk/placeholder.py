"""What stands for a value while a static pipeline's body is read.

A placeholder carries item and attribute access into the graph. Everything that would need the value itself is
refused, naming the line of the body that asked.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, NoReturn, cast

from pipeserve.sdk.arguments import FromNode, FromParameter
from pipeserve.sdk.context import current_scope

Refuse = Callable[["Placeholder", str], NoReturn]
"""Raises DefinitionError for a placeholder and the operation that it can't do."""


class Placeholder:
    """A parameter's or a step's value that isn't there yet."""

    __slots__ = ("_pipeserve_length", "_pipeserve_refuse", "_pipeserve_source")

    def __init__(self, source: FromParameter | FromNode, refuse: Refuse, length: int | None = None) -> None:
        self._pipeserve_source = source
        self._pipeserve_refuse = refuse
        self._pipeserve_length = length  # how many values a step with several outputs unpacks into

    def _pipeserve_part(self, kind: Any, key: Any) -> Placeholder:
        source = self._pipeserve_source
        path = (*source.path, (kind, key))
        part = FromParameter(source.name, path) if isinstance(source, FromParameter) else FromNode(source.node, path)
        return Placeholder(part, self._pipeserve_refuse)

    def __getitem__(self, key: Any) -> Placeholder:
        parts: list[Any] = [key]
        if isinstance(key, slice):
            bounds = cast("slice[Any, Any, Any]", key)
            parts = [bounds.start, bounds.stop, bounds.step]
        for part in parts:
            if isinstance(part, Placeholder):
                self._pipeserve_refuse(part, "used as an index")
        if self._pipeserve_length is not None and isinstance(key, int) and key >= self._pipeserve_length:
            raise IndexError(f"{placeholder_label(self)} has {self._pipeserve_length} outputs; there is no [{key}]")
        return self._pipeserve_part("item", key)

    def __getattr__(self, name: str) -> Placeholder:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return self._pipeserve_part("attribute", name)

    def __iter__(self) -> Iterator[Placeholder]:
        if self._pipeserve_length is None:
            self._pipeserve_refuse(self, "iterated over")
        return iter([self[index] for index in range(self._pipeserve_length)])

    def __await__(self) -> Generator[None, None, Placeholder]:
        # `await step(...)` in an async body: the placeholder itself, at once.
        return self
        yield

    def __repr__(self) -> str:
        tracer = getattr(self._pipeserve_refuse, "__self__", None)
        if tracer is not None and current_scope.get() is tracer:  # `f"{x!r}"` or `f"{[x]}"` in the body, say
            self._pipeserve_refuse(self, "formatted into text")
        return f"<placeholder {placeholder_label(self)}>"

    def __setattr__(self, name: str, value: object) -> None:
        if name in Placeholder.__slots__:
            object.__setattr__(self, name, value)
        else:
            self._pipeserve_refuse(self, "changed")


def placeholder_label(placeholder: Placeholder) -> str:
    """For messages: ``parameter 'text'`` or ``the result of step 'embed'``."""
    source = source_of(placeholder)
    return f"parameter {source.name!r}" if isinstance(source, FromParameter) else f"the result of step {source.node!r}"


def source_of(placeholder: Placeholder) -> FromParameter | FromNode:
    """Where its value will come from."""
    return placeholder._pipeserve_source  # pyright: ignore[reportPrivateUsage]


def _refusal(words: str) -> Callable[..., NoReturn]:
    def refuse(self: Placeholder, *_: object) -> NoReturn:
        self._pipeserve_refuse(self, words)  # pyright: ignore[reportPrivateUsage]
        raise AssertionError("unreachable")

    return refuse


_NEEDS_VALUE = {
    "tested for truth (if, while, and, or, not)": ["bool"],
    "formatted into text": ["str", "format"],
    "measured with len()": ["len"],
    "searched with in": ["contains"],
    "called": ["call"],
    "compared": ["eq", "ne", "lt", "le", "gt", "ge"],
    "used as a number": [
        "int",
        "float",
        "complex",
        "index",
        "round",
        "trunc",
        "floor",
        "ceil",
        "abs",
        "neg",
        "pos",
        "invert",
    ],
    "used in arithmetic": [
        prefix + name
        for name in (
            "add",
            "sub",
            "mul",
            "truediv",
            "floordiv",
            "mod",
            "divmod",
            "pow",
            "matmul",
            "and",
            "or",
            "xor",
            "lshift",
            "rshift",
        )
        for prefix in ("", "r")
    ],
    "changed": ["setitem", "delitem"],
    "hashed (a dict key or a set member)": ["hash"],
    "used in with or async for": ["enter", "aenter", "aiter", "next", "anext"],
}

for _words, _names in _NEEDS_VALUE.items():
    for _name in _names:
        setattr(Placeholder, f"__{_name}__", _refusal(_words))
