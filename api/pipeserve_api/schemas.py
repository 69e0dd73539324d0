"""Reads the bodies of invocations: one model of a whole body, made once for the deployment."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic_core import from_json, to_json

from pipeserve.errors import BadRequestError, InvalidParametersError
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.schema import BoundParameters
from pipeserve_api.terms import InvocationTerms, JobTerms, WebhookTerms

MAX_BATCH = 1000
"""Items of one batch."""
_MAY_OVERFLOW = re.compile(rb"[0-9][eE]\+?[0-9]|[0-9]{300}")
"""What every number beyond the range of a float has in it; a body without it needs no closer look."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """One validated body."""

    parameters: BoundParameters
    raw_parameters: bytes
    """``parameters`` with the values that were sent: one JSON object."""
    sent: Mapping[str, Any]
    """The whole body, as JSON values."""
    run_name: str | None = None
    timeout: float | None = None
    taps: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    webhook: WebhookTerms | None = None
    priority: int = 0
    run_at: float | None = None
    """Unix time in seconds."""
    expires_in: float | None = None


class InvocationReader:
    """Validates bodies against one pipeline."""

    def __init__(self, definition: PipelineDefinition) -> None:
        self._parameters = definition.parameters
        # A body without parameters is refused only if one is required, and then the refusal names it.
        parameters: Any = (definition.parameters.model, Field(default_factory=dict, validate_default=True))
        self._invocation: type[BaseModel] = create_model("Invocation", __base__=InvocationTerms, parameters=parameters)
        self._item: type[BaseModel] = create_model("Item", __base__=JobTerms, parameters=parameters)

    def read(self, body: bytes) -> Invocation:
        """The invocation that ``body`` asks for; an empty body is ``{}``.

        Raises BadRequestError for what is no JSON and for numbers that no float can hold, InvalidParametersError
        naming each wrong key.
        """
        body = body or b"{}"
        return self._read(self._invocation, body, parse(body))

    def items(self, body: bytes) -> list[Any]:
        """The items of a batch, for :meth:`read_item`. Raises as :meth:`read`, for the batch as a whole."""
        sent = parse(body or b"{}")
        if not isinstance(sent, dict):
            raise _wrong("body", "dict_type", 'The body must be a JSON object: {"items": [{"parameters": {…}}, …]}')
        members = cast(dict[str, Any], sent)
        for name in members.keys() - {"items"}:
            raise _wrong(name, "unknown", f"key {name!r} is unknown; known: items")
        items = members.get("items")
        if not isinstance(items, list):
            raise _wrong("items", "missing" if items is None else "list_type", "items must be an array of invocations")
        count = len(cast(list[Any], items))
        if not 1 <= count <= MAX_BATCH:
            raise _wrong("items", "length", f"items: 1 to {MAX_BATCH} of them, not {count}")
        return cast(list[Any], items)

    def read_item(self, item: Any) -> Invocation:
        """One item of a batch. Raises InvalidParametersError naming each wrong key."""
        # Through JSON, because that has conversions of its own. Not orjson: whole numbers may have more than 64 bits.
        return self._read(self._item, to_json(item), item)

    def _read(self, kind: type[BaseModel], body: bytes, sent: Any) -> Invocation:
        if not isinstance(sent, dict):
            raise _wrong("body", "dict_type", 'The body must be a JSON object: {"parameters": {…}}')
        try:
            model: Any = kind.model_validate_json(body)
        except ValidationError as error:
            raise self._explain(error, kind) from None
        members = cast(dict[str, Any], sent)
        return Invocation(
            parameters=self._parameters.bind(model.parameters),
            raw_parameters=to_json(members.get("parameters", {})),
            sent=members,
            run_name=model.run_name,
            timeout=model.timeout,
            taps=tuple(getattr(model, "taps", None) or ()),
            labels=model.labels or {},
            webhook=model.webhook,
            priority=model.priority or 0,
            run_at=None if model.run_at is None else model.run_at.timestamp(),
            expires_in=model.expires_in,
        )

    def _explain(self, error: ValidationError, kind: type[BaseModel]) -> InvalidParametersError:
        """``error`` with parameters named as the pipeline names them, and the body's other keys as they are."""
        items = error.errors(include_url=False, include_context=False, include_input=False)
        of_parameters = self._parameters.explain(error, skip=1).errors or []
        errors = [
            explained
            if item["loc"][0] == "parameters" and len(item["loc"]) > 1
            else _explain_term(item["loc"], item["type"], item["msg"], kind)
            for item, explained in zip(items, of_parameters, strict=True)
        ]
        return InvalidParametersError("; ".join(item["detail"] for item in errors), errors=errors)


def _explain_term(location: tuple[int | str, ...], kind: str, message: str, model: type[BaseModel]) -> dict[str, Any]:
    name = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        fields = WebhookTerms.model_fields if location[0] == "webhook" else model.model_fields
        known = ", ".join(sorted(fields, key=lambda field: field != "parameters"))
        return {"name": name, "type": "unknown", "detail": f"key {name!r} is unknown; known: {known}"}
    return {"name": name, "type": kind, "detail": f"{name}: {message}"}


def parse(body: bytes, what: str = "The body") -> Any:
    """``body`` as JSON values. Raises BadRequestError, which calls it ``what``, as :meth:`InvocationReader.read`."""
    try:
        # Validation alone would take NaN, and keeps no copy of what was sent.
        sent = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BadRequestError(f"{what} is not JSON: {error}") from None
    if _MAY_OVERFLOW.search(body) and (place := _overflow(sent)) is not None:
        raise BadRequestError(
            f"{place}: the number is too large; one with a fraction or an exponent must lie within ±1.8e308"
        )
    return sent


def _wrong(name: str, kind: str, detail: str) -> InvalidParametersError:
    return InvalidParametersError(detail, errors=[{"name": name, "type": kind, "detail": detail}])


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
