"""What a completed job gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json
from typing_extensions import TypeVar as TypeVarWithDefault

from pipeserve.client.errors import UnexpectedOutputsError

_SOLE = "output"
"""What a service calls the one output of a pipeline that gives it no name."""
OutputsT = TypeVarWithDefault("OutputsT", default=dict[str, Any])
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Result(Generic[OutputsT]):
    """The outputs of one completed job."""

    job_id: str
    outputs: OutputsT
    """By name, as JSON values; or what :meth:`into` made of them."""
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    """Pipeline, deployment, run name and steps; of a synchronous call also ``parameters_applied`` and ``cache``."""
    execution_time: float | None = None
    """Seconds for which the pipeline ran."""

    def into(self, kind: type[_T]) -> Result[_T]:
        """The same with ``outputs`` read as ``kind``: a pydantic model, dataclass, TypedDict or any type it can read.

        ``kind`` is what the pipeline is annotated to return. So it has a field for each named output; of a pipeline
        that returns one value without a name it is that value's type. Raises UnexpectedOutputsError if they don't fit.
        """
        outputs: object = self.outputs
        if isinstance(outputs, dict) and set(cast("dict[str, Any]", outputs)) == {_SOLE}:
            outputs = cast("dict[str, Any]", outputs)[_SOLE]
        try:
            read = TypeAdapter(kind).validate_json(to_json(outputs))
        except ValidationError as error:
            raise UnexpectedOutputsError(_misfit(kind, error), job_id=self.job_id) from None
        return Result(self.job_id, read, self.metadata, self.execution_time)


def _misfit(kind: type[Any], error: ValidationError) -> str:
    """In words, without the values: they may be nobody's business."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    places = [f"{'.'.join(map(str, one['loc'])) or 'the value'}: {one['msg']}" for one in found]
    name = str(kind) if get_origin(kind) else kind.__qualname__
    return f"the outputs don't fit {name}: {'; '.join(places)}"
