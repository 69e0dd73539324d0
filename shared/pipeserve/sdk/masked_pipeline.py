"""What of one pipeline's parameters and outputs is masked, by their types and by where they go and come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeserve.sdk.arguments import Access, Argument, Collection, FromNode, FromParameter, sources
from pipeserve.sdk.definition import PipelineDefinition, StepDefinition
from pipeserve.sdk.masked import parts_of
from pipeserve.sdk.masked_parts import Each, Members, Parts, Places, Whole, any_of


@dataclass(frozen=True, slots=True)
class MaskedPipeline:
    """What is masked of one pipeline."""

    parameters: Mapping[str, Parts]
    """Of its parameters. One that goes to a masked parameter of a step is masked, too."""
    settable: Mapping[tuple[str, str], Parts]
    """Of the step parameters that a request may set, by step and parameter."""
    keys: Mapping[str, Parts]
    """Of the values in a request's ``parameters``, by key."""
    outputs: Mapping[str, Parts]
    """Of its outputs."""

    @classmethod
    def of(cls, definition: PipelineDefinition) -> MaskedPipeline | None:
        """What is masked of ``definition``; None: nothing, in no step either."""
        parameters = _parameters(definition)
        settable = {
            place: parts
            for place, parameter in definition.settable().items()
            if (parts := parts_of(parameter.annotation)) is not None
        }
        keys = dict(parameters)
        for key, (step, name) in definition.parameters.places().items():
            parts = parameters.get(name) if step is None else settable.get((step, name))
            if parts is not None:
                keys[key] = parts
        outputs = _outputs(definition, parameters)
        if not keys and not outputs and not any(masks_anything(step) for step in definition.steps):
            return None
        return cls(parameters, settable, keys, outputs)


def masks_anything(step: StepDefinition) -> bool:
    """Whether a step has a masked parameter or result."""
    return result_parts(step) is not None or any(
        parts_of(parameter.annotation) is not None for parameter in step.parameters
    )


def result_parts(step: StepDefinition) -> Parts | None:
    """What is masked of the value of a step, as its pipeline gets it."""
    parts = tuple(parts_of(output.annotation) for output in step.outputs)
    if len(parts) == 1:
        return parts[0]
    return Places(parts) if any(parts) else None


def _parameters(definition: PipelineDefinition) -> dict[str, Parts]:
    found: dict[str, list[Parts]] = {}
    for parameter in definition.parameters_list:
        if (parts := parts_of(parameter.annotation)) is not None:
            found.setdefault(parameter.name, []).append(parts)
    for node in definition.nodes:
        for parameter in node.step.parameters:
            parts = parts_of(parameter.annotation)
            argument = node.arguments[parameter.name]
            if parts is None or (isinstance(argument, Collection) and not isinstance(parts, Whole)):
                continue
            for source in sources(argument):
                if isinstance(source, FromParameter):
                    found.setdefault(source.name, []).append(_under(source.path, parts))
    return {name: parts for name, choices in found.items() if (parts := any_of(choices)) is not None}


def _outputs(definition: PipelineDefinition, parameters: Mapping[str, Parts]) -> dict[str, Parts]:
    results = {node.name: result_parts(node.step) for node in definition.nodes}
    found: dict[str, list[Parts | None]] = {
        output.name: [parts_of(output.annotation)] for output in (*definition.outputs, *definition.returns)
    }
    for output in definition.outputs:
        found[output.name].append(_of_argument(output.value, parameters, results))
    return {
        name: parts
        for name, choices in found.items()
        if (parts := any_of([choice for choice in choices if choice is not None])) is not None
    }


def _of_argument(
    argument: Argument, parameters: Mapping[str, Parts], results: Mapping[str, Parts | None]
) -> Parts | None:
    """What is masked of a value that comes from there."""
    if isinstance(argument, (FromParameter, FromNode)):
        found = parameters.get(argument.name) if isinstance(argument, FromParameter) else results[argument.node]
        for access in argument.path:
            found = None if found is None else found.at(access)
        return found
    if not isinstance(argument, Collection):
        return None
    inner = [_of_argument(item, parameters, results) for item in argument.items]
    if not any(inner):
        return None
    if argument.kind is dict:
        members = Members()
        for key, parts in zip(argument.keys, inner, strict=True):
            members.add(str(key), parts)
        return members
    if argument.kind in (list, tuple):
        return Places(tuple(inner))
    parts = any_of([parts for parts in inner if parts is not None])  # a set: which is which is lost
    return None if parts is None else Each(parts)


def _under(path: tuple[Access, ...], parts: Parts) -> Parts:
    """``parts`` of what stands at the end of ``path``."""
    for _, key in reversed(path):
        name: Any = key
        if isinstance(name, int):
            parts = Places((*[None] * name, parts)) if name >= 0 else Each(parts)
        else:
            members = Members()
            members.add(str(name), parts)
            parts = members
    return parts
