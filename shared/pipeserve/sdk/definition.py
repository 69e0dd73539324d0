"""What a step and a pipeline are, once read: frozen values that the runtime compiles and the service describes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from pipeserve.sdk.arguments import Argument, Default, describe_argument
from pipeserve.sdk.batch import Batch
from pipeserve.sdk.cache import Cache
from pipeserve.sdk.capture import Capture
from pipeserve.sdk.materializer import Materializer
from pipeserve.sdk.retry import Retry
from pipeserve.sdk.secret import MASKED
from pipeserve.sdk.stream import is_stream

if TYPE_CHECKING:
    from pipeserve.sdk.masked_pipeline import MaskedPipeline
    from pipeserve.sdk.schema import ParametersModel

_SCHEMA_WORDS = frozenset({"title", "$ref", "anyOf", "allOf", "oneOf"})  # one of them stands in every schema

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
    cache: Cache | Literal[False] | None = None
    """None: as the pipeline says."""
    retry: Retry | None = None
    batch: Batch | None = None
    checkpoint: bool = False
    """Whether a job that is tried again goes on from this step's recorded result."""
    executor: Literal["thread", "process"] = "thread"

    @property
    def takes_streams(self) -> frozenset[str]:
        """Its parameters that take another step's yields while that one runs."""
        return frozenset(parameter.name for parameter in self.parameters if is_stream(parameter.annotation))

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
    """The nodes that it comes after: those it takes values from, and those of :attr:`after`."""
    after: tuple[str, ...] = ()
    """The nodes that must have completed before, whatever it takes from them."""


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
    cache: Cache | None = None
    """For steps that do not say."""
    materializers: tuple[Materializer[Any], ...] = ()
    """The author's own, before the built-in ones."""
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

    @cached_property
    def masked(self) -> MaskedPipeline | None:
        """What of its parameters and outputs must not be shown; None: nothing, in no step either."""
        from pipeserve.sdk.masked_pipeline import MaskedPipeline  # it reads definitions

        return MaskedPipeline.of(self)

    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of a request's ``parameters``."""
        return self._published(self.parameters.model.model_json_schema(by_alias=True))

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
        return self._published(schema | {"$defs": shared["$defs"]} if "$defs" in shared else schema)

    def _published(self, schema: dict[str, Any]) -> dict[str, Any]:
        """``schema`` without defaults that are masked and, where code is not captured, without docstrings."""
        shared: dict[str, Any] = schema.get("$defs", {})
        for part in list(_objects_in(schema)):
            # The second: else it is a list of members, one of which is called "default".
            if (
                "default" in part
                and _SCHEMA_WORDS & part.keys()
                and any(MASKED in inner for inner in _objects_in(part, shared))
            ):
                del part["default"]
        if not self.capture.code:
            for described in shared.values():
                described.pop("description", None)  # of a class; those of fields stand with their fields
        return schema

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
                    **_policies(step),
                    "cache": self.cache_of(step) is not None,
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
                **_policies(node.step),
                "cache": self.cache_of(node.step) is not None,
            }
            for node in self.nodes
        ]

    def cache_of(self, step: StepDefinition) -> Cache | None:
        """The policy by which this pipeline's calls of ``step`` are cached; None: they are not."""
        return self.cache if step.cache is None else step.cache or None

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


def _objects_in(schema: Any, shared: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Every JSON object in a schema; ``shared``: also in those of its definitions that it refers to."""
    waiting: list[Any] = [schema]
    followed: set[str] = set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            members = cast(dict[str, Any], part)
            yield members
            waiting += members.values()
            name = str(members.get("$ref", "")).removeprefix("#/$defs/")
            if shared is not None and name in shared and name not in followed:
                followed.add(name)
                waiting.append(shared[name])
        elif isinstance(part, list):
            waiting += cast(list[Any], part)


def _policies(step: StepDefinition) -> dict[str, Any]:
    """How a service calls the step, for people and dashboards."""
    return {
        "retry": None if step.retry is None else step.retry.attempts,
        "batch": None if step.batch is None else step.batch.max_size,
        "checkpoint": step.checkpoint,
        "executor": step.executor,
    }


def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """The type's adapter, if it has a JSON Schema."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        adapter.json_schema(mode="serialization")
    except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation):
        return None
    return adapter
