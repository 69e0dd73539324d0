"""``StepCode``: what tells a step's function from all others, also from those that the same lines of code have made.

Its module's text alone would not do: a function that makes steps (``def adder(n): @step …``) makes many of one text and
name, which differ in the values that they have kept.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CellType
from typing import Any, cast

from pipeserve.runtime.cache.canonical.encoding import joined, text_form, type_name
from pipeserve.runtime.cache.canonical.values import LEAVES
from pipeserve.sdk.definition import StepDefinition
from pipeserve.sdk.fingerprint import fingerprint
from pipeserve.sdk.step import Step

_DEEPEST = 8  # functions and tuples inside kept values


@dataclass(frozen=True, slots=True)
class StepCode:
    """The code that a step's results depend on, the same in every process."""

    digest: bytes
    """32 bytes: its whole module, where in it the function stands, and the plain values that it has kept."""
    whole: bool
    """Whether nothing else counts. False: it has kept values that can change or can't be compared, a list or a model
    say, of which the digest knows the types only."""

    @classmethod
    def of(cls, step: StepDefinition) -> StepCode:
        """The code of ``step``."""
        forms = _Forms()
        form = forms.function(step.fn, 0)
        whole = hashlib.sha256(bytes.fromhex(fingerprint(step.name, [step.fn])))
        whole.update(form)
        return cls(whole.digest(), not forms.left_out)


class _Forms:
    """Makes forms of what one function has kept."""

    def __init__(self) -> None:
        self.left_out = False
        self._seen: set[int] = set()  # functions that refer to themselves

    def function(self, function: Callable[..., Any], depth: int) -> bytes:
        if id(function) in self._seen:
            return b"^"
        self._seen.add(id(function))
        code = getattr(function, "__code__", None)
        place = [
            text_form(str(getattr(function, "__module__", ""))),
            text_form(str(getattr(function, "__qualname__", type_name(type(function))))),
            b"%d" % getattr(code, "co_firstlineno", 0),
        ]
        defaults = (getattr(function, "__defaults__", None), *sorted(_named_defaults(function)))
        return joined(b"F", [*place, *(self.value(kept, depth + 1) for kept in (*defaults, *_kept(function)))])

    def value(self, value: object, depth: int) -> bytes:
        kind = cast(type[Any], type(value))
        leaf = LEAVES.get(kind)
        if leaf is not None:
            return leaf(value)
        if depth < _DEEPEST:
            if isinstance(value, Step):
                return self.function(cast(Step[..., Any], value).fn, depth)
            if inspect.isfunction(value):
                return self.function(value, depth)
            if kind is tuple:
                return joined(b"t", [self.value(item, depth + 1) for item in cast(tuple[object, ...], value)])
        if isinstance(value, type):
            return joined(b"C", [text_form(type_name(value))])
        if inspect.ismodule(value):
            return joined(b"M", [text_form(value.__name__)])
        self.left_out = True
        return joined(b"?", [text_form(type_name(kind))])


def _named_defaults(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    yield from (getattr(function, "__kwdefaults__", None) or {}).items()


def _kept(function: Callable[..., Any]) -> Iterator[object]:
    cells: tuple[CellType, ...] = getattr(function, "__closure__", None) or ()
    for cell in cells:
        try:
            yield cell.cell_contents
        except ValueError:  # it has no value yet
            yield None
    bound: object = getattr(function, "__self__", None)
    if bound is not None:
        yield bound
