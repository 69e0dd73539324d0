"""A static pipeline compiled for execution: once per deployment, shared by all its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeserve.sdk.arguments import Resolver, resolver
from pipeserve.sdk.definition import Mode, Node, PipelineDefinition


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One node, ready to be called."""

    index: int
    name: str
    fn: Callable[..., Any]
    mode: Mode
    timeout: float | None
    positional: tuple[tuple[str, Resolver], ...]
    """Parameter name and where its value comes from, in the order of the call."""
    named: tuple[tuple[str, Resolver], ...]
    downstream: tuple[int, ...]
    """The steps that wait for this one."""
    waits_for: int
    """How many steps this one waits for."""

    def call(
        self, parameters: Mapping[str, Any], results: Mapping[str, Any], overrides: Mapping[tuple[str, str], Any]
    ) -> Any:
        """Call the function with its arguments in this run."""
        if overrides:
            return self._call_overridden(parameters, results, overrides)
        if self.named:
            return self.fn(
                *[source(parameters, results) for _, source in self.positional],
                **{name: source(parameters, results) for name, source in self.named},
            )
        return self.fn(*[source(parameters, results) for _, source in self.positional])

    def _call_overridden(
        self, parameters: Mapping[str, Any], results: Mapping[str, Any], overrides: Mapping[tuple[str, str], Any]
    ) -> Any:
        def value(name: str, source: Resolver) -> Any:
            place = (self.name, name)
            return overrides[place] if place in overrides else source(parameters, results)

        return self.fn(
            *[value(name, source) for name, source in self.positional],
            **{name: value(name, source) for name, source in self.named},
        )


@dataclass(frozen=True, slots=True)
class PlannedOutput:
    """One of the pipeline's outputs."""

    name: str
    value: Resolver
    step_name: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole graph."""

    steps: tuple[PlannedStep, ...]
    roots: tuple[int, ...]
    outputs: tuple[PlannedOutput, ...]


def compile_plan(definition: PipelineDefinition) -> Plan:
    """The plan of a static pipeline."""
    index_of = {node.name: index for index, node in enumerate(definition.nodes)}
    downstream: list[list[int]] = [[] for _ in definition.nodes]
    for index, node in enumerate(definition.nodes):
        for name in node.upstream:
            downstream[index_of[name]].append(index)
    steps = tuple(_planned(node, index, tuple(downstream[index])) for index, node in enumerate(definition.nodes))
    return Plan(
        steps=steps,
        roots=tuple(planned.index for planned in steps if planned.waits_for == 0),
        outputs=tuple(
            PlannedOutput(output.name, resolver(output.value), output.step_name) for output in definition.outputs
        ),
    )


def _planned(node: Node, index: int, downstream: tuple[int, ...]) -> PlannedStep:
    sources = [(parameter, resolver(node.arguments[parameter.name])) for parameter in node.step.parameters]
    return PlannedStep(
        index=index,
        name=node.name,
        fn=node.step.fn,
        mode=node.step.mode,
        timeout=node.step.timeout,
        positional=tuple((parameter.name, source) for parameter, source in sources if not parameter.keyword_only),
        named=tuple((parameter.name, source) for parameter, source in sources if parameter.keyword_only),
        downstream=downstream,
        waits_for=len(node.upstream),
    )
