"""The texts by which a value could be recognised: what must not stand in anything that is told of a run.

A text is searched for as it is, and as it looks once it has gone through ``repr``, JSON, a URL or HTML. A string of
several lines counts line by line too, because logs are kept by line.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, cast
from urllib.parse import quote, quote_plus
from uuid import UUID

from pydantic import BaseModel, SecretBytes, SecretStr

SHORTEST = 4
"""Characters below which a text is not searched for: it would stand everywhere."""
MOST = 10_000
"""Values inside one masked value that are looked at."""

_TEXTUAL = (Decimal, PurePath, UUID, date, time)


def leaves(value: Any) -> Iterator[str | int | float]:
    """The texts and numbers in ``value``, at any depth: at most :data:`MOST`, each object once."""
    waiting: list[Any] = [value]
    seen: set[int] = set()
    count = 0
    while waiting and count < MOST:
        found = waiting.pop()
        count += 1
        if isinstance(found, (SecretStr, SecretBytes)):
            found = found.get_secret_value()
        elif isinstance(found, Enum):
            found = found.value
        if isinstance(found, (bytes, bytearray)):
            yield from _texts_of_bytes(bytes(found))
        elif isinstance(found, (str, int, float)) or found is None:
            if found is not None and not isinstance(found, bool):
                yield found
        elif isinstance(found, _TEXTUAL):
            yield str(found)
        elif id(found) not in seen:
            seen.add(id(found))
            waiting += _inside(found)


def forms(text: str) -> set[str]:
    """How ``text`` may look inside other text; none for what is too short to be searched for."""
    found: set[str] = set()
    for part in {text, text.strip(), *(line.strip() for line in text.splitlines())}:
        if len(part) < SHORTEST or part.isspace():
            continue
        found |= {part, repr(part)[1:-1], json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1]}
        found |= {quote(part, safe=""), quote(part), quote_plus(part), html.escape(part)}
    return {form for form in found if len(form) >= SHORTEST}


def _texts_of_bytes(value: bytes) -> Iterator[str]:
    yield base64.b64encode(value).decode()
    yield base64.urlsafe_b64encode(value).decode()
    yield value.hex()
    yield repr(value)[2:-1]
    try:
        yield value.decode()
    except UnicodeDecodeError:  # no text, so nobody prints it as one
        return


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, BaseModel):
        return [*value.__dict__.values(), *(value.model_extra or {}).values()]
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return cast(Mapping[Any, Any], value).values()
    if hasattr(value, "tolist"):  # numpy, pandas
        return [value.tolist()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return cast(Iterable[Any], value)
    return list(cast(dict[str, Any], getattr(value, "__dict__", {})).values())
