"""A pipeline's JSON schemas as a tool's: what MCP asks of both, and what a result can keep to."""

from __future__ import annotations

from typing import Any


def input_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments: an object's, with all that the pipeline's own schema says.

    A step's parameter has two names in the service's schema, ``step.param`` and ``param``, where only one step has it.
    Here it has the short one: a model that sees both sets both.
    """
    properties: dict[str, Any] = schema.get("properties", {})
    kept = {name: value for name, value in properties.items() if not _has_short_twin(name, value, properties)}
    return {**schema, "type": "object", "properties": kept}


def output_schema(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of a result; None where outputs are no object.

    No output is required: one that is too large for the result is left out of it, and its text says where to read it.
    """
    if schema.get("type") != "object" or not isinstance(schema.get("properties"), dict):
        return None
    return {name: value for name, value in schema.items() if name != "required"}


def _has_short_twin(name: str, value: Any, properties: dict[str, Any]) -> bool:
    _, dot, short = name.partition(".")
    return bool(dot) and short in properties and _untitled(properties[short]) == _untitled(value)


def _untitled(value: Any) -> Any:
    """Without its title, which pydantic makes of the name."""
    return {name: part for name, part in value.items() if name != "title"} if isinstance(value, dict) else value  # pyright: ignore[reportUnknownVariableType]  # JSON: str keys, any values
