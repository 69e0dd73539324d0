"""How forms are put together, and the error for a value that has none."""

from __future__ import annotations

import sys
from array import array
from hashlib import blake2b
from typing import Any

INLINE = 256
"""Bytes up to which a form stands inside another as it is."""


class NoCanonicalFormError(Exception):
    """A value, or one inside it, can't be compared with others by its content."""

    def __init__(self, kind: type, reason: str) -> None:
        self.type_name = type_name(kind)
        """The type of the value at fault."""
        self.reason = reason
        """What about it, as the end of a sentence whose subject is the value."""
        super().__init__(f"a {self.type_name} value {reason}")


def kind_of(value: object) -> type:
    """Its type, of which a type checker knows no more than that."""
    return type(value)


def type_name(kind: type) -> str:
    """A type's name for people: ``list``, ``decimal.Decimal``."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def digest(data: Any) -> bytes:
    """16 bytes that stand for ``data``, which is anything with a contiguous buffer.

    blake2b and sha256 take 0.3 µs each for a short text. For long ones they are about equal (0.9 and 1.1 GB/s) where
    the processor knows sha256, and blake2b is twice as fast elsewhere.
    """
    return blake2b(data, digest_size=16).digest()


def joined(mark: bytes, forms: list[bytes]) -> bytes:
    """One form of several."""
    return mark + array("Q", [len(forms), *map(len, forms)]).tobytes() + b"".join(forms)


def instance(kind: type, *forms: bytes) -> bytes:
    """The form of an object of type ``kind`` that consists of ``forms``."""
    return joined(b"O", [name_form(kind), *forms])


def text_form(text: str) -> bytes:
    """The form of a str."""
    try:
        return b"s" + str.encode(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        return b"s" + str.encode(text, "utf-8", "surrogatepass")


def name_form(thing: Any) -> bytes:
    """A class or function by its name, which must lead back to it: of the rest there may be many with one name."""
    generic: Any = getattr(thing, "__pydantic_generic_metadata__", None)
    if generic and generic["origin"] is not None:
        return joined(b"G", [name_form(generic["origin"]), *map(_type_argument_form, generic["args"])])
    found: Any = sys.modules.get(thing.__module__)
    for part in thing.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not thing:
        if isinstance(thing, type):
            raise NoCanonicalFormError(thing, "is of a class that can't be imported by its name")
        raise NoCanonicalFormError(kind_of(thing), "can't be imported by its name, as a lambda or an inner function")
    return joined(b":", [text_form(thing.__module__), text_form(thing.__qualname__)])


def _type_argument_form(argument: Any) -> bytes:
    if isinstance(argument, type):
        return name_form(argument)
    text = repr(argument)
    if "<locals>" in text:
        raise NoCanonicalFormError(kind_of(argument), "names a class that can't be imported by its name")
    return text_form(text)
