"""What a step and a pipeline are, once read: frozen values that the runtime compiles and the service describes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from pipeserve.sdk.arguments import Argument, Default, describe_argument
from pipeserve.sdk.capture import Capture

if TYPE_CHECKING:
    from pipeserve.sdk.schema import ParametersModel

REQUIRED: Any = inspect.Parameter.empty
"""Stands for "no default"."""


class Mode(Enum):
    """How a function runs."""

    SYNC = "sync"
    ASYNC = "async"
    GENERATOR = "generator"
    ASYNC_GENERATOR = "async generator"

    @property
    def is_async(self) -> bool:
        """Whether it runs on the event loop."""
        return self in (Mode.ASYNC, Mode.ASYNC_GENERATOR)

    @property
    def streams(self) -> bool:
        """Whether its value is the list of what it yields."""
        return self in (Mode.GENERATOR, Mode.ASYNC_GENERATOR)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a step or pipeline."""

    name: str
    annotation: Any
    default: Any
    keyword_only: bool
    """Whether it can be passed by name only."""

    @property
    def required(self) -> bool:
        """Whether a call must pass it."""
        return self.default is REQUIRED


@dataclass(frozen=True, slots=True)
class Output:
    """One named output and its type."""

    name: str
    annotation: Any


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """A typed function that pipelines call."""

    name: str
    fn: Callable[..., Any]
    mode: Mode
    parameters: tuple[Parameter, ...]
    outputs: tuple[Output, ...]
    """One, or several for a tuple of named types."""
    timeout: float | None
    """Seconds that one call may take."""
    doc: str | None
    signature: inspect.Signature

    def parameter(self, name: str) -> Parameter | None:
        """Its parameter of this name."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)


@dataclass(frozen=True, slots=True)
class Node:
    """One call of a step in a static pipeline."""

    name: str
    step: StepDefinition
    arguments: dict[str, Argument]
    """Every parameter of the step, in its order."""
    upstream: tuple[str, ...]
    """The nodes that must have completed before: those it takes values from, and those named by ``after``."""


@dataclass(frozen=True, slots=True)
class PipelineOutput:
    """One output of a static pipeline."""

    name: str
    value: Argument
    annotation: Any
    step_name: str | None
    """The node it comes from, when it comes from one."""


@dataclass(frozen=True)
class PipelineDefinition:
    """A pipeline, read once."""

    name: str
    fn: Callable[..., Any]
    mode: Mode
    dynamic: bool
    doc: str | None
    parameters_list: tuple[Parameter, ...]
    nodes: tuple[Node, ...]
    """Static: every call, each after all that it needs. Dynamic: empty."""
    steps: tuple[StepDefinition, ...]
    """The steps it calls. Dynamic: those that its code names."""
    outputs: tuple[PipelineOutput, ...]
    """Static only."""
    returned: Argument | None
    """Static only: what the body returned, as plain Python would return it; None when it returned nothing."""
    returns: tuple[Output, ...]
    """Dynamic: its outputs, as its return annotation names them."""
    capture: Capture
    fingerprint: str
    """SHA-256 in hex over the source of the pipeline and its steps."""
    on_init: Callable[[], Any] | None = None
    on_cleanup: Callable[[], Any] | None = None
    signature: inspect.Signature = field(default_factory=inspect.Signature)

    @property
    def total_steps(self) -> int | None:
        """How many step calls one run makes; None when only the run can tell."""
        return None if self.dynamic else len(self.nodes)

    @cached_property
    def parameters(self) -> ParametersModel:
        """The model that validates a request's parameters."""
        from pipeserve.sdk.schema import parameters_model  # the schema reads definitions

        return parameters_model(self)

    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of a request's ``parameters``."""
        return self.parameters.model.model_json_schema(by_alias=True)

    def output_schema(self) -> dict[str, Any]:
        """JSON Schema of an answer's ``outputs``: one property an output, ``{}`` where its type has no schema."""
        named = self.returns if self.dynamic else self.outputs
        adapters = {output.name: adapter for output in named if (adapter := _adapter(output.annotation)) is not None}
        # All at once, so that the types which outputs share stand once, under "$defs" at the root where "$ref" looks.
        schemas, shared = TypeAdapter.json_schemas(
            [(name, "serialization", adapter) for name, adapter in adapters.items()]
        )
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {output.name: schemas.get((output.name, "serialization"), {}) for output in named},
            "required": [output.name for output in named],
        }
        return schema | {"$defs": shared["$defs"]} if "$defs" in shared else schema

    def describe_steps(self) -> list[dict[str, Any]]:
        """Each step (static: each call) for people and dashboards."""
        if self.dynamic:
            return [
                {
                    "name": step.name,
                    "step": step.name,
                    "mode": step.mode.value,
                    "inputs": {
                        parameter.name: "default" if not parameter.required else "argument"
                        for parameter in step.parameters
                    },
                    "upstream": [],
                    "outputs": [output.name for output in step.outputs],
                    "timeout": step.timeout,
                    "cache": False,
                }
                for step in self.steps
            ]
        return [
            {
                "name": node.name,
                "step": node.step.name,
                "mode": node.step.mode.value,
                "inputs": {name: describe_argument(argument) for name, argument in node.arguments.items()},
                "upstream": list(node.upstream),
                "outputs": [output.name for output in node.step.outputs],
                "timeout": node.step.timeout,
                "cache": False,
            }
            for node in self.nodes
        ]

    def settable(self) -> dict[tuple[str, str], Parameter]:
        """The step parameters that the pipeline left at their default, by (node or step name, parameter name)."""
        if self.dynamic:
            return {
                (step.name, parameter.name): parameter
                for step in self.steps
                for parameter in step.parameters
                if not parameter.required
            }
        return {
            (node.name, parameter.name): parameter
            for node in self.nodes
            for parameter in node.step.parameters
            if isinstance(node.arguments[parameter.name], Default)
        }


def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """The type's adapter, if it has a JSON Schema."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        adapter.json_schema(mode="serialization")
    except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation):
        return None
    return adapter
