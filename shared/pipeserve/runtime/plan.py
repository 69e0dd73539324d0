"""A static pipeline compiled for execution: once per deployment, shared by all its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pipeserve.runtime.step_spec import Call, StepSpec, StepSpecs
from pipeserve.sdk.arguments import FromNode, Resolver, resolver, sources
from pipeserve.sdk.definition import Node, Parameter, PipelineDefinition
from pipeserve.sdk.stream import as_stream

_NO_NAMES: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One node, ready to be called."""

    index: int
    name: str
    spec: StepSpec
    positional: tuple[tuple[str, Resolver], ...]
    """Parameter name and where its value comes from, in the order of the call."""
    named: tuple[tuple[str, Resolver], ...]
    downstream: tuple[int, ...]
    """The steps that wait for this one to complete."""
    readers: tuple[int, ...]
    """The steps that read what this one yields while it runs: they wait for it to start."""
    reads: tuple[str, ...]
    """The nodes whose yields this one reads while they run."""
    waits_for: int
    """How many steps this one waits for, to complete or to start."""
    live: bool
    """Whether it runs side by side with another step, at either end of a stream."""

    def bind(
        self, parameters: Mapping[str, Any], results: Mapping[str, Any], overrides: Mapping[tuple[str, str], Any]
    ) -> Call:
        """The call with its arguments in this run."""
        if overrides:
            return self._bind_overridden(parameters, results, overrides)
        return Call(
            self.spec,
            tuple([source(parameters, results) for _, source in self.positional]),
            {name: source(parameters, results) for name, source in self.named} if self.named else _NO_NAMES,
        )

    def _bind_overridden(
        self, parameters: Mapping[str, Any], results: Mapping[str, Any], overrides: Mapping[tuple[str, str], Any]
    ) -> Call:
        def value(name: str, source: Resolver) -> Any:
            place = (self.name, name)
            return overrides[place] if place in overrides else source(parameters, results)

        return Call(
            self.spec,
            tuple([value(name, source) for name, source in self.positional]),
            {name: value(name, source) for name, source in self.named},
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
    streams: tuple[PlannedStep, ...]
    """The steps whose yields others read while they run."""

    @property
    def waiting_threads(self) -> int:
        """How many of its steps may hold a thread of the pool only to wait for what another one yields."""
        return sum(1 for planned in self.steps if planned.reads and not planned.spec.on_loop)


def compile_plan(definition: PipelineDefinition, specs: StepSpecs) -> Plan:
    """The plan of a static pipeline."""
    index_of = {node.name: index for index, node in enumerate(definition.nodes)}
    streaming = {node.name for node in definition.nodes if node.step.mode.streams}
    reads = [_reads(node, specs.of(node.step), streaming) for node in definition.nodes]
    downstream: list[list[int]] = [[] for _ in definition.nodes]
    readers: list[list[int]] = [[] for _ in definition.nodes]
    for index, node in enumerate(definition.nodes):
        for name in node.upstream:
            (readers if name in reads[index] else downstream)[index_of[name]].append(index)
    steps = tuple(
        _planned(node, specs.of(node.step), index, tuple(downstream[index]), tuple(readers[index]), reads[index])
        for index, node in enumerate(definition.nodes)
    )
    return Plan(
        steps=steps,
        roots=tuple(planned.index for planned in steps if planned.waits_for == 0),
        outputs=tuple(
            PlannedOutput(output.name, resolver(output.value), output.step_name) for output in definition.outputs
        ),
        streams=tuple(planned for planned in steps if planned.readers),
    )


def _reads(node: Node, spec: StepSpec, streaming: set[str]) -> tuple[str, ...]:
    """The nodes of ``streaming`` whose yields ``node`` can read while they run: it takes nothing else of them."""
    if not spec.reads_live:
        return ()
    live: list[str] = []
    completed = set(node.after)
    for name, argument in node.arguments.items():
        for source in sources(argument):
            if isinstance(source, FromNode):
                whole = source is argument and not source.path
                if whole and source.node in streaming and name in node.step.takes_streams:
                    live.append(source.node)
                else:
                    completed.add(source.node)
    return tuple(name for name in dict.fromkeys(live) if name not in completed)


def _planned(
    node: Node,
    spec: StepSpec,
    index: int,
    downstream: tuple[int, ...],
    readers: tuple[int, ...],
    reads: tuple[str, ...],
) -> PlannedStep:
    arguments = [(parameter, _source(node, parameter)) for parameter in node.step.parameters]
    return PlannedStep(
        index=index,
        name=node.name,
        spec=spec,
        positional=tuple((parameter.name, source) for parameter, source in arguments if not parameter.keyword_only),
        named=tuple((parameter.name, source) for parameter, source in arguments if parameter.keyword_only),
        downstream=downstream,
        readers=readers,
        reads=reads,
        waits_for=len(node.upstream),
        live=bool(readers or reads),
    )


def _source(node: Node, parameter: Parameter) -> Resolver:
    source = resolver(node.arguments[parameter.name])
    if parameter.name not in node.step.takes_streams:
        return source
    return lambda parameters, results: as_stream(source(parameters, results))
