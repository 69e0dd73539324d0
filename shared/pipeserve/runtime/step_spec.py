"""A step as one runtime runs it: its definition, and the policies that apply to it in this pipeline."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeserve.runtime.capture.masking import StepMasking
from pipeserve.runtime.step_code import StepCode
from pipeserve.sdk.cache import Cache
from pipeserve.sdk.definition import Mode, PipelineDefinition, StepDefinition

_log = logging.getLogger(__name__)
_MOST_OTHERS = 512  # steps that a pipeline's code does not name, as those which its body makes in each run


@dataclass(frozen=True, slots=True, eq=False)
class StepSpec:
    """What the runtime needs to know of a step for each of its calls; made once."""

    definition: StepDefinition
    fn: Callable[..., Any]
    mode: Mode
    timeout: float | None
    cache: Cache | None
    code: bytes
    """Digest of the code that the step's results depend on: of its whole module, and of what its function has kept."""
    cache_code: bytes
    """The same for the cache's keys. Where :attr:`code` can't tell it from another step's, it is this process's own."""
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
    def of(cls, pipeline: PipelineDefinition, step: StepDefinition, code: StepCode, *, alone: bool = True) -> StepSpec:
        """How ``pipeline`` calls ``step``, whose code is ``code``. ``alone``: no other step has the same."""
        masking = StepMasking.of(step)
        cache = _keeping_secrets(step, pipeline.cache_of(step), masking)
        cache_code = code.digest
        if not alone:
            cache = _keeping_apart(step, cache)
            cache_code = secrets.token_bytes(len(code.digest))
        elsewhere = step.batch is not None or step.executor == "process"
        return cls(
            definition=step,
            fn=step.fn,
            mode=step.mode,
            timeout=step.timeout,
            cache=cache,
            code=code.digest,
            cache_code=cache_code,
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


def _keeping_apart(step: StepDefinition, cache: Cache | None) -> Cache | None:
    """A cache that no other process shares: there, another step may have the same name and code."""
    if cache is None or cache.scope != "shared":
        return cache
    _log.warning(
        "step %r is cached in its process only: several steps have its name and code, and differ in values of an "
        "enclosing function that can't be compared. Pass these as arguments, or give each step a name",
        step.name,
    )
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
    """The specs of one pipeline's steps, those that its code does not name made when first asked for. Thread-safe."""

    def __init__(self, pipeline: PipelineDefinition) -> None:
        self._pipeline = pipeline
        self._lock = threading.Lock()
        self._own: dict[int, StepSpec] = {}
        self._others: dict[int, StepSpec] = {}  # the oldest first; bounded, for a body may make new ones in each run
        self._functions: dict[bytes, Callable[..., Any]] = {}  # by code
        for step in pipeline.steps:
            self._own[id(step)] = self._made(step, own=True)

    def of(self, step: StepDefinition) -> StepSpec:
        """The spec of ``step``. A dynamic body may call steps that its code does not name."""
        spec = self._own.get(id(step)) or self._others.get(id(step))  # a spec keeps its step: no other has its id
        return self._other(step) if spec is None else spec

    def known(self) -> list[StepSpec]:
        """Those of the steps that the pipeline's code names, and of some others."""
        return [*self._own.values(), *self._others.values()]

    def _other(self, step: StepDefinition) -> StepSpec:
        made = self._made(step, own=False)
        with self._lock:
            spec = self._others.setdefault(id(step), made)
            if len(self._others) > _MOST_OTHERS:
                del self._others[next(iter(self._others))]
        return spec

    def _made(self, step: StepDefinition, *, own: bool) -> StepSpec:
        code = StepCode.of(step)
        first = self._functions.get(code.digest)
        if own and first is None:
            first = self._functions[code.digest] = step.fn
        # What is made in a run may be made again in the next, with other values that the code does not show.
        alone = code.whole or first is step.fn or not (own or "<locals>" in getattr(step.fn, "__qualname__", ""))
        return StepSpec.of(self._pipeline, step, code, alone=alone)
