"""Which types of events a reader wants: ``types=`` of every way to read a log."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import Field

from pipeserve.errors import InvalidParametersError
from pipeserve.events import EventType

_TYPES = frozenset(event_type.value for event_type in EventType)

_ONE = f"({'|'.join(sorted(_TYPES))})?"
_Names = Annotated[str, Field(json_schema_extra={"pattern": f"^{_ONE}(,{_ONE})*$"})]
EventTypes = Annotated[list[_Names] | None, Query(description="Only events of these types (comma-separated).")]
"""The query parameter; :func:`wanted_types` reads it."""


def wanted_types(types: list[str] | None) -> frozenset[str] | None:
    """The names in ``types``, each a list with commas; None: all. Raises InvalidParametersError for an unknown one."""
    if types is None:
        return None
    wanted = frozenset(name.strip() for text in types for name in text.split(",") if name.strip())
    unknown = sorted(wanted - _TYPES)
    if unknown:
        detail = f"unknown event types: {', '.join(unknown)}; known: {', '.join(sorted(_TYPES))}"
        raise InvalidParametersError(detail, errors=[{"name": "types", "type": "enum", "detail": detail}])
    return wanted or None
