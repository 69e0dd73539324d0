"""Reads the body of an invocation: one model of the whole body, made once for the deployment."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import from_json, to_json

from pipeserve.errors import BadRequestError, InvalidParametersError
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.schema import BoundParameters

MAX_LABELS = 64
_MAY_OVERFLOW = re.compile(rb"[0-9][eE]\+?[0-9]|[0-9]{300}")
"""What every number beyond the range of a float has in it; a body without it needs no closer look."""


class InvocationOptions(BaseModel):
    """What a body may say besides ``parameters``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_name: Annotated[
        str | None, Field(min_length=1, max_length=200, description="A name for people; made up if not given.")
    ] = None
    timeout: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="Seconds that the run may take; past them it is 504 timed_out."),
    ] = None
    taps: Annotated[
        list[str] | None,
        Field(description="Intermediate outputs to return, each as step.output. Synchronous calls only."),
    ] = None
    labels: Annotated[
        dict[str, str] | None, Field(max_length=MAX_LABELS, description="Kept with the job; GET /jobs filters by them.")
    ] = None


@dataclass(frozen=True, slots=True)
class Invocation:
    """One validated body."""

    parameters: BoundParameters
    raw_parameters: bytes
    """``parameters`` with the values that were sent: one JSON object."""
    run_name: str | None
    timeout: float | None
    taps: tuple[str, ...]
    labels: Mapping[str, str]


class InvocationReader:
    """Validates bodies against one pipeline."""

    def __init__(self, definition: PipelineDefinition) -> None:
        self._parameters = definition.parameters
        self.model: type[BaseModel] = create_model(
            "Invocation",
            __base__=InvocationOptions,
            # A body without parameters is refused only if one is required, and then the refusal names it.
            parameters=(definition.parameters.model, Field(default_factory=dict, validate_default=True)),
        )

    def read(self, body: bytes) -> Invocation:
        """The invocation that ``body`` asks for; an empty body is ``{}``.

        Raises BadRequestError for what is no JSON and for numbers that no float can hold, InvalidParametersError
        naming each wrong key.
        """
        body = body or b"{}"
        try:
            # Validation alone would take NaN, and keeps no copy of what was sent.
            sent = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise BadRequestError(f"The body is not JSON: {error}") from None
        if _MAY_OVERFLOW.search(body) and (place := _overflow(sent)) is not None:
            raise BadRequestError(
                f"{place}: the number is too large; one with a fraction or an exponent must lie within ±1.8e308"
            )
        if not isinstance(sent, dict):
            detail = 'The body must be a JSON object: {"parameters": {…}}'
            raise InvalidParametersError(detail, errors=[{"name": "body", "type": "dict_type", "detail": detail}])
        try:
            model: Any = self.model.model_validate_json(body)
        except ValidationError as error:
            raise self._explain(error) from None
        return Invocation(
            parameters=self._parameters.bind(model.parameters),
            # Not orjson: whole numbers may have more than 64 bits.
            raw_parameters=to_json(sent.get("parameters", {})),  # pyright: ignore[reportUnknownMemberType]
            run_name=model.run_name,
            timeout=model.timeout,
            taps=tuple(model.taps or ()),
            labels=model.labels or {},
        )

    def _explain(self, error: ValidationError) -> InvalidParametersError:
        """``error`` with parameters named as the pipeline names them, and the body's other keys as they are."""
        items = error.errors(include_url=False, include_context=False, include_input=False)
        of_parameters = self._parameters.explain(error, skip=1).errors or []
        errors = [
            explained
            if item["loc"][0] == "parameters" and len(item["loc"]) > 1
            else _explain_option(item["loc"], item["type"], item["msg"])
            for item, explained in zip(items, of_parameters, strict=True)
        ]
        return InvalidParametersError("; ".join(item["detail"] for item in errors), errors=errors)


def _explain_option(location: tuple[int | str, ...], kind: str, message: str) -> dict[str, Any]:
    name = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        known = ", ".join(["parameters", *InvocationOptions.model_fields])
        return {"name": name, "type": "unknown", "detail": f"key {name!r} is unknown; known: {known}"}
    return {"name": name, "type": kind, "detail": f"{name}: {message}"}


def _overflow(sent: Any) -> str | None:
    """Where in a body the parser turned a number into an infinity (``1e400``); None: nowhere."""
    waiting: list[tuple[str, Any]] = [("", sent)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, float):
            if not math.isfinite(value):
                return place or "body"
        elif isinstance(value, dict):
            prefix = f"{place}." if place else ""
            waiting += [(f"{prefix}{key}", inner) for key, inner in cast(dict[str, Any], value).items()]
        elif isinstance(value, list):
            waiting += [(f"{place or 'body'}.{index}", inner) for index, inner in enumerate(cast(list[Any], value))]
    return None
