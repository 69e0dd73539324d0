"""What of one run must not be shown: the texts of its masked values, and how they are taken out of all that is told.

One :class:`Masks` belongs to one run. It fills as values become known: parameters before the first step, results as
steps complete. A pipeline without masked types has none, and pays nothing.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Any, cast

import orjson
from pydantic_core import from_json, to_json

from pipeserve.errors import Problem
from pipeserve.runtime.capture.secret_texts import SHORTEST, forms, leaves
from pipeserve.sdk.secret import MASK


class Masks:
    """The texts that one run hides. Thread-safe: readers see a whole set, as it was or as it is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: tuple[str, ...] = ()  # longest first: one may stand in another
        self._numbers: dict[str, re.Pattern[str]] = {}
        self._short: frozenset[str] = frozenset()
        self._marks: tuple[bytes, ...] = ()  # one of them stands in every JSON text that has something to hide

    def add(self, value: Any) -> None:
        """Hide ``value`` from now on, and all that is in it."""
        texts: set[str] = set()
        numbers: set[str] = set()
        short: set[str] = set()
        for leaf in leaves(value):
            if not isinstance(leaf, str):
                numbers |= _forms_of_number(leaf)
            elif found := forms(leaf):
                texts |= found
            elif leaf:
                short.add(leaf)
        if texts or numbers or short:
            self._extend(texts, numbers, short)

    def include(self, other: Masks) -> None:
        """Hide what ``other`` hides, as it is now."""
        self._extend(set(other._texts), set(other._numbers), set(other._short))

    def hide(self, text: str) -> str:
        """``text`` with a mask in the place of each hidden one."""
        for hidden in self._texts:
            if hidden in text:
                text = text.replace(hidden, MASK)
        for number, pattern in self._numbers.items():
            if number in text:
                text = pattern.sub(MASK, text)
        return text

    def hide_cut(self, text: str) -> str:
        """``text`` that ends in an ellipsis where it was cut off: perhaps in the middle of what is hidden."""
        if not text.endswith("…"):
            return self.hide(text)
        text = self.hide(text[:-1])
        for hidden in (*self._texts, *self._numbers):
            for length in range(min(len(hidden) - 1, len(text)), 0, -1):
                if text.endswith(hidden[:length]):
                    text = text[:-length] + MASK
                    break
        return text + "…"

    def hide_json(self, body: bytes, *, only: str | None = None) -> bytes:
        """One JSON text with a mask for each hidden value, and in each text for each hidden one.

        ``only``: it is an object, and only this member of it is looked at.
        """
        if not any(mark in body for mark in self._marks):
            return body
        found = from_json(body)
        hidden = self.hide_value(found) if only is None else {**found, only: self.hide_value(found[only])}
        return to_json(hidden)  # not orjson: whole numbers may have more than 64 bits

    def hide_value(self, value: Any) -> Any:
        """The same for JSON values."""
        if isinstance(value, str):
            return MASK if value in self._short else self.hide(value)
        if isinstance(value, dict):
            members = cast(dict[str, Any], value)
            return {self.hide(name): self.hide_value(member) for name, member in members.items()}
        if isinstance(value, list):
            return [self.hide_value(member) for member in cast(list[Any], value)]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return MASK if str(value) in self._numbers else value
        return value

    def hide_problem(self, problem: Problem) -> Problem:
        """A problem document whose words hide nothing else than its error's did."""
        detail, errors = self.hide(problem.detail), problem.errors
        hidden = None if errors is None else [cast(dict[str, Any], self.hide_value(error)) for error in errors]
        return (
            problem
            if detail == problem.detail and hidden == errors
            else problem.model_copy(update={"detail": detail, "errors": hidden})
        )

    def _extend(self, texts: Iterable[str], numbers: Iterable[str], short: Iterable[str]) -> None:
        with self._lock:
            self._texts = tuple(sorted({*self._texts, *texts}, key=len, reverse=True))
            self._numbers = {
                number: re.compile(rf"(?<!\d){re.escape(number)}(?!\d)") for number in {*self._numbers, *numbers}
            }
            self._short |= frozenset(short)
            self._marks = (
                *(orjson.dumps(text)[1:-1] for text in self._texts),
                *(number.encode() for number in self._numbers),
                *(orjson.dumps(text) for text in self._short),
            )


def _forms_of_number(value: float) -> set[str]:
    """None for one of so few digits that it would stand everywhere."""
    texts = {str(value)}
    if isinstance(value, float) and value.is_integer():
        texts.add(str(int(value)))
    return {text for text in texts if sum(character.isdigit() for character in text) >= SHORTEST}
