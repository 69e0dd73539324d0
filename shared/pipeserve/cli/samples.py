"""Makes up parameters that a pipeline would accept, from its JSON Schema: for the curl lines that ``serve`` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

TEXT = (
    "A pipeline turns a document into an answer, one step at a time. Each step is a plain Python function. "
    "Steps that do not depend on each other run side by side."
)
_BY_FORMAT = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "duration": "PT1M",
    "email": "ada@example.org",
    "time": "12:00:00Z",
    "uri": "https://example.org/",
    "uuid": "01234567-89ab-7def-8123-456789abcdef",
}
_DEEPEST = 8
"""Levels; a type that contains itself ends there."""


def sample_parameters(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Values for what ``schema`` (an object's) requires; the rest is left to its defaults."""
    return _object(schema, schema.get("$defs", {}), 0)


def _sample(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int) -> Any:
    if "$ref" in schema:
        referred = definitions.get(str(schema["$ref"]).rpartition("/")[2], {})
        # What stands beside a reference (a default, an example) is closer to the parameter than what it refers to.
        schema = {**referred, **{name: value for name, value in schema.items() if name != "$ref"}}
    for name in ("examples", "enum"):
        if schema.get(name):
            return schema[name][0]
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return _sample(schema[name][0], definitions, depth + 1)
    match schema.get("type"):
        case "object":
            return _object(schema, definitions, depth)
        case "array":
            return _array(schema, definitions, depth)
        case "string":
            return _string(schema)
        case "integer":
            return int(_number(schema, 1))
        case "number":
            return _number(schema, 0.5)
        case "boolean":
            return True
        case _:
            return None


def _object(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int) -> dict[str, Any]:
    if depth >= _DEEPEST:
        return {}
    properties: Mapping[str, Any] = schema.get("properties", {})
    return {name: _sample(properties.get(name, {}), definitions, depth + 1) for name in schema.get("required", ())}


def _array(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int) -> list[Any]:
    if depth >= _DEEPEST:
        return []
    if "prefixItems" in schema:
        return [_sample(item, definitions, depth + 1) for item in schema["prefixItems"]]
    item = _sample(schema.get("items", {}), definitions, depth + 1)
    return [item] * max(1, schema.get("minItems", 1))


def _string(schema: Mapping[str, Any]) -> str:
    text = _BY_FORMAT.get(schema.get("format", ""), TEXT)
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength", len(text))
    if longest < len(text):
        return text[:longest]
    return text if len(text) >= shortest else text.ljust(shortest, ".")


def _number(schema: Mapping[str, Any], usual: float) -> float:
    """``usual`` where it is allowed, else what is allowed nearest to it."""
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    multiple = schema.get("multipleOf")
    if multiple is not None:
        value = max(math.floor(low / multiple) + 1 if math.isfinite(low) else 1, 1) * multiple
        return value if value <= high else low
    if low < usual < high:
        return usual
    if math.isfinite(low) and math.isfinite(high):
        return (low + high) / 2
    return low + 1 if math.isfinite(low) else high - 1
