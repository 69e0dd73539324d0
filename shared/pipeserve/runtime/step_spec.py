"""A step as one runtime runs it: its definition, and the policies that apply to it in this pipeline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeserve.runtime.masking import StepMasking
from pipeserve.sdk.cache import Cache
from pipeserve.sdk.definition import Mode, PipelineDefinition, StepDefinition
from pipeserve.sdk.fingerprint import fingerprint

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepSpec:
    """What the runtime needs to know of a step for each of its calls; made once."""

    definition: StepDefinition
    fn: Callable[..., Any]
    mode: Mode
    timeout: float | None
    cache: Cache | None
    code: bytes
    """Digest of the code that the step's results depend on: of its whole module."""
    plain: bool
    """Whether a call is nothing but a call: no cache, no retry, nothing gathered or recorded."""
    on_loop: bool
    """Whether its calls are awaited on the event loop, though the function itself may be ``def``."""
    positional: tuple[str, ...]
    """The names of the parameters that are passed by place."""
    returns: Any
    """The type of its value as a pipeline gets it."""
    reads_live: bool
    """Whether it may start while a step whose yields it takes still runs.

    Not where its inputs make a key, are gathered with others' or go to another process: these need the whole list.
    """
    masking: StepMasking | None
    """What is masked of its calls; None: nothing."""

    @classmethod
    def of(cls, pipeline: PipelineDefinition, step: StepDefinition) -> StepSpec:
        """How ``pipeline`` calls ``step``."""
        masking = StepMasking.of(step)
        cache = _keeping_secrets(step, pipeline.cache_of(step), masking)
        elsewhere = step.batch is not None or step.executor == "process"
        return cls(
            definition=step,
            fn=step.fn,
            mode=step.mode,
            timeout=step.timeout,
            cache=cache,
            code=bytes.fromhex(fingerprint(step.name, [step.fn])),
            plain=not elsewhere and cache is None and step.retry is None and not step.checkpoint,
            on_loop=elsewhere or step.mode.is_async,
            positional=tuple(parameter.name for parameter in step.parameters if not parameter.keyword_only),
            returns=_value_type([output.annotation for output in step.outputs]),
            reads_live=bool(step.takes_streams) and not elsewhere and cache is None and not step.checkpoint,
            masking=masking,
        )


def _keeping_secrets(step: StepDefinition, cache: Cache | None, masking: StepMasking | None) -> Cache | None:
    """A pipeline's shared cache is none for a step whose result holds a secret: that is never written to the store."""
    result = None if masking is None else masking.result
    if cache is None or cache.scope != "shared" or result is None or not result.secret:
        return cache
    _log.warning("step %r is cached in its process only: its result is Secret, and a shared one is stored", step.name)
    return replace(cache, scope="process")


def _value_type(outputs: list[Any]) -> Any:
    return outputs[0] if len(outputs) == 1 else tuple[tuple(outputs)]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a step with its arguments."""

    spec: StepSpec
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self) -> Any:
        """Call the function."""
        return self.spec.fn(*self.args, **self.kwargs)

    def arguments(self) -> dict[str, Any]:
        """The arguments by name."""
        return {**dict(zip(self.spec.positional, self.args, strict=False)), **self.kwargs}


class StepSpecs:
    """The specs of one pipeline's steps, each made when it is first asked for. Thread-safe."""

    def __init__(self, pipeline: PipelineDefinition) -> None:
        self._pipeline = pipeline
        self._specs: dict[int, StepSpec] = {}
        for step in pipeline.steps:
            self.of(step)

    def of(self, step: StepDefinition) -> StepSpec:
        """The spec of ``step``. A dynamic body may call steps that its code does not name."""
        spec = self._specs.get(id(step))
        if spec is None or spec.definition is not step:
            spec = self._specs[id(step)] = StepSpec.of(self._pipeline, step)
        return spec

    def known(self) -> list[StepSpec]:
        """All that were asked for."""
        return list(self._specs.values())
