"""The masks of one pipeline's runs: made from a request's parameters, and for each of its step calls.

A pipeline without masked types has none of this, and its runs pay nothing for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from pipeserve.runtime.capture.masks import Masks
from pipeserve.runtime.capture.veil import Veil
from pipeserve.sdk.definition import PipelineDefinition, StepDefinition
from pipeserve.sdk.masked import parts_of
from pipeserve.sdk.masked_parts import Parts
from pipeserve.sdk.masked_pipeline import MaskedPipeline, result_parts
from pipeserve.sdk.schema import BoundParameters


class RunMasking:
    """What is masked in every run of one pipeline."""

    def __init__(self, pipeline: MaskedPipeline) -> None:
        self._pipeline = pipeline

    @classmethod
    def of(cls, definition: PipelineDefinition) -> RunMasking | None:
        """For ``definition``; None: nothing of it is masked."""
        return None if definition.masked is None else cls(definition.masked)

    def veil(self, parameters: BoundParameters) -> Veil:
        """A run's veil, with what is masked of its parameters."""
        veil = Veil()
        for name, parts in self._pipeline.parameters.items():
            _add(veil.masks, parts, parameters.values.get(name))
        for place, parts in self._pipeline.settable.items():
            _add(veil.masks, parts, parameters.overrides.get(place))
        return veil

    def shown_parameters(self, raw: bytes, parameters: BoundParameters) -> bytes:
        """A request's ``parameters`` (one JSON object, as it was sent) as its job's record may show them."""
        masks, keys = self.veil(parameters).masks, self._pipeline.keys
        sent: dict[str, Any] = from_json(raw)
        return to_json(
            {key: masks.hide_value(keys[key].hide(value) if key in keys else value) for key, value in sent.items()}
        )


@dataclass(frozen=True, slots=True)
class StepMasking:
    """What is masked of the calls of one step."""

    arguments: Mapping[str, Parts]
    result: Parts | None
    """Of its value, as its pipeline gets it."""

    @classmethod
    def of(cls, step: StepDefinition) -> StepMasking | None:
        """For ``step``; None: nothing of it is masked."""
        arguments = {
            parameter.name: parts
            for parameter in step.parameters
            if (parts := parts_of(parameter.annotation)) is not None
        }
        result = result_parts(step)
        return None if not arguments and result is None else cls(arguments, result)

    def begin(self, veil: Veil, name: str, arguments: Mapping[str, Any], *, streams: bool) -> None:
        """A call begins: hide what is masked of its arguments, and wait with what it tells for its result."""
        for parameter, parts in self.arguments.items():
            _add(veil.masks, parts, arguments.get(parameter))
        if self.result is not None:
            veil.begin(name, self.result, streams=streams)

    def complete(self, veil: Veil, value: Any) -> None:
        """The call has this value."""
        if self.result is not None:
            _add(veil.masks, self.result, value)


def _add(masks: Masks, parts: Parts, value: Any) -> None:
    for masked in parts.values(value):
        masks.add(masked)
