"""A request's ``parameters``: the pydantic model of one deployment, and how its values bind.

A key is a pipeline parameter, ``step.parameter`` for a step parameter that the pipeline left at its default, or that
bare parameter name where exactly one step has it and no pipeline parameter does.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUndefinedAnnotation
from pydantic_core import core_schema

from pipeserve.errors import DefinitionError, InvalidParametersError
from pipeserve.sdk.arguments import describe_argument
from pipeserve.sdk.definition import Parameter, PipelineDefinition

_PYDANTICS_OWN = frozenset(get_args(core_schema.ErrorType)) - {"value_error", "assertion_error"}
"""Errors whose words are pydantic's, and not a validator's."""


@dataclass(frozen=True, slots=True)
class BoundParameters:
    """One request's parameters, validated."""

    values: Mapping[str, Any]
    """Every pipeline parameter, with defaults applied."""
    overrides: Mapping[tuple[str, str], Any]
    """Step parameters that the request set, by (step, parameter)."""
    applied: tuple[str, ...]
    """The keys that the request set, in its own spelling."""


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a key's value goes: a pipeline parameter, or a step's."""

    key: str
    step: str | None
    parameter: str


class ParametersModel:
    """Validates and binds the ``parameters`` of one pipeline."""

    def __init__(self, definition: PipelineDefinition) -> None:
        self._definition = definition
        targets: dict[str, _Target] = {}
        fields: dict[str, Any] = {}

        def add(target: _Target, parameter: Parameter, *, required: bool) -> None:
            # Fields have made-up names, so that a parameter may be called `copy`, `json` or `model_x`.
            field_name = f"p{len(fields)}"
            targets[field_name] = target
            default = ... if required else parameter.default
            # A pipeline parameter keeps the description of its own annotation.
            field: Any = Field(default, alias=target.key)
            if target.step is not None:
                said = f"Parameter {target.parameter!r} of step {target.step!r}."
                field = Field(default, alias=target.key, description=said)
            fields[field_name] = (parameter.annotation, field)

        for parameter in definition.parameters_list:
            if not _has_schema(parameter.annotation):
                raise DefinitionError(
                    f"pipeline {definition.name!r}: argument {parameter.name!r} has a type that JSON can't carry "
                    f"({parameter.annotation!r}); take a type that pydantic knows, and convert it in a step"
                )
            add(_Target(parameter.name, None, parameter.name), parameter, required=parameter.required)
        for (step, name), parameter in definition.settable().items():
            if _has_schema(parameter.annotation):
                add(_Target(f"{step}.{name}", step, name), parameter, required=False)
        taken = {parameter.name for parameter in definition.parameters_list}
        for target, parameter in self._bare(taken, list(targets.values())):
            add(target, parameter, required=False)

        self._targets = targets
        self.model: type[BaseModel] = create_model(
            f"{definition.name}_parameters",
            __config__=ConfigDict(extra="forbid", frozen=True, protected_namespaces=()),
            **fields,
        )

    def _bare(self, taken: set[str], dotted: list[_Target]) -> list[tuple[_Target, Parameter]]:
        definition = self._definition
        holders = (
            [(step.name, step) for step in definition.steps]
            if definition.dynamic
            else [(node.name, node.step) for node in definition.nodes]
        )
        having = Counter(parameter.name for _, step in holders for parameter in step.parameters)
        settable = definition.settable()
        return [
            (_Target(target.parameter, target.step, target.parameter), settable[target.step, target.parameter])
            for target in dotted
            if target.step is not None and target.parameter not in taken and having[target.parameter] == 1
        ]

    def places(self) -> dict[str, tuple[str | None, str]]:
        """What each key of a request sets: the step, None for the pipeline itself, and its parameter."""
        return {target.key: (target.step, target.parameter) for target in self._targets.values()}

    def validate(self, raw: Mapping[str, Any]) -> BoundParameters:
        """Validate JSON values. Raises InvalidParametersError, naming every unknown, missing and mistyped key."""
        try:
            return self.bind(self.model.model_validate(raw))
        except ValidationError as error:
            raise self.explain(error) from None

    def validate_json(self, raw: bytes) -> BoundParameters:
        """The same for one JSON object, with JSON's own conversions (a date is text there, also in strict models)."""
        try:
            return self.bind(self.model.model_validate_json(raw))
        except ValidationError as error:
            raise self.explain(error) from None

    def bind(self, validated: BaseModel) -> BoundParameters:
        """Bind an instance of :attr:`model`. Raises InvalidParametersError for a parameter given in both spellings."""
        values: dict[str, Any] = {}
        overrides: dict[tuple[str, str], Any] = {}
        applied: list[str] = []
        given = validated.model_fields_set
        for field_name, value in validated.__dict__.items():
            target = self._targets[field_name]
            if target.step is None:
                values[target.parameter] = value
            elif field_name in given:
                place = (target.step, target.parameter)
                if place in overrides:
                    detail = f"{target.key!r} and {'.'.join(place)!r} are the same parameter; give one"
                    raise InvalidParametersError(
                        detail, errors=[{"name": target.key, "type": "duplicate", "detail": detail}]
                    )
                overrides[place] = value
            if field_name in given:
                applied.append(target.key)
        return BoundParameters(values, overrides, tuple(applied))

    def explain(self, error: ValidationError, *, skip: int = 0) -> InvalidParametersError:
        """``error`` in words that name each key; ``skip`` leading members of its locations are left out.

        Values are never repeated: they may be secret.
        """
        errors: list[dict[str, Any]] = []
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            location = [str(part) for part in item["loc"][skip:]]
            kind: str = item["type"]
            location, told = self._visible(location, kind)
            name = ".".join(location) or "parameters"
            if kind == "extra_forbidden" and len(location) == 1:
                kind, detail = "unknown", self._unknown(location[0])
            elif kind == "missing":
                detail = f"parameter {name!r} is missing"
            elif not told:
                detail = f"parameter {name!r} is not valid ({kind})"
            else:
                detail = f"parameter {name!r}: {item['msg']}"
            errors.append({"name": name, "type": kind, "detail": detail})
        return InvalidParametersError("; ".join(item["detail"] for item in errors), errors=errors)

    def _visible(self, location: list[str], kind: str) -> tuple[list[str], bool]:
        """Where an error may be said to be, and whether its words may be repeated: not if they may hold a masked value.

        Pydantic's own words never do. A validator's are its author's, and a key of a masked dict stands in a location.
        """
        masked = self._definition.masked
        parts = masked.keys.get(location[0]) if masked is not None and location else None
        if parts is None:
            return location, True
        visible, inside = parts.visible(location[1:])
        return [location[0], *visible], kind in _PYDANTICS_OWN and not inside

    def _unknown(self, key: str) -> str:
        keys = [target.key for target in self._targets.values()]
        step_name, _, parameter = key.rpartition(".")
        for node in self._definition.nodes:
            if node.name == step_name and parameter in node.arguments:
                wired = describe_argument(node.arguments[parameter])
                return f"parameter {key!r} can't be set: the pipeline wires it to {wired}"
        several = [target.key for target in self._targets.values() if target.step and target.parameter == key]
        if len(several) > 1:
            return f"parameter {key!r} is ambiguous: say which of {', '.join(several)}"
        close = difflib.get_close_matches(key, keys, n=1)
        hint = (
            f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(keys)}" if keys else "; it takes none"
        )
        return f"parameter {key!r} is unknown{hint}"


def parameters_model(definition: PipelineDefinition) -> ParametersModel:
    """The model of ``definition``'s parameters. Raises DefinitionError for a parameter that JSON can't carry."""
    return ParametersModel(definition)


def _has_schema(annotation: Any) -> bool:
    mode: Literal["validation"] = "validation"
    try:
        TypeAdapter(annotation).json_schema(mode=mode)
    except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation):
        return False
    return True
