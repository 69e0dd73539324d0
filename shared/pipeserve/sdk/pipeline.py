"""``@pipeline``: a function that calls steps becomes something that can be served, and called in this process."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

from pipeserve.errors import DefinitionError
from pipeserve.sdk.annotations import caller_names, mode_of, outputs_of, parameters_of, type_hints
from pipeserve.sdk.arguments import FromParameter
from pipeserve.sdk.cache import Cache, cache_policy
from pipeserve.sdk.capture import Capture
from pipeserve.sdk.context import current_scope
from pipeserve.sdk.definition import Mode, Output, Parameter, PipelineDefinition, StepDefinition
from pipeserve.sdk.fingerprint import fingerprint
from pipeserve.sdk.graph import Tracer, refuse_identity_tests
from pipeserve.sdk.local import LocalPipeline
from pipeserve.sdk.materializer import Materializer
from pipeserve.sdk.placeholder import Placeholder
from pipeserve.sdk.step import Step

P = ParamSpec("P")
R = TypeVar("R")


class Pipeline(Generic[P, R]):
    """What ``@pipeline`` makes of a function. Called outside a service, it runs in this process."""

    __name__: str

    def __init__(self, definition: PipelineDefinition) -> None:
        self.definition = definition
        self._local = LocalPipeline(definition)
        functools.update_wrapper(self, definition.fn)

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self.definition.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        scope = current_scope.get()
        if isinstance(scope, Tracer):
            if self.definition.dynamic:
                raise DefinitionError(
                    f"pipeline {self.definition.name!r} is dynamic and can't join the graph of a static one: its body "
                    "needs values. Make the calling pipeline dynamic too"
                )
            return scope.call_pipeline(self.definition.name, self.definition.fn, self.definition.mode, args, kwargs)
        if scope is not None:  # in a run: part of the body or step that calls it
            if self.definition.mode is Mode.SYNC and any(node.step.mode.is_async for node in self.definition.nodes):
                raise TypeError(
                    f"pipeline {self.definition.name!r} is `def` and has async steps: inside a run nobody would await "
                    "them. Make it `async def`, and await its steps and itself"
                )
            return self.definition.fn(*args, **kwargs)
        return self._local.call(args, kwargs)

    def __repr__(self) -> str:
        return f"<pipeline {self.definition.name}>"


@overload
def pipeline(fn: Callable[P, R], /) -> Pipeline[P, R]: ...
@overload
def pipeline(
    *,
    name: str | None = None,
    dynamic: bool = False,
    capture: Capture | None = None,
    cache: Cache | bool = False,
    materializers: Sequence[Materializer[Any]] = (),
    on_init: Callable[[], Any] | None = None,
    on_cleanup: Callable[..., Any] | None = None,
) -> PipelineDecorator: ...


def pipeline(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    dynamic: bool = False,
    capture: Capture | None = None,
    cache: Cache | bool = False,
    materializers: Sequence[Materializer[Any]] = (),
    on_init: Callable[[], Any] | None = None,
    on_cleanup: Callable[..., Any] | None = None,
) -> Any:
    """Make a pipeline of a function that calls steps: ``@pipeline`` or ``@pipeline(dynamic=True)``.

    A static pipeline's body is read once, with placeholders, into a graph whose independent steps run in parallel; it
    may not look at values. A dynamic pipeline's body runs for each request. ``capture`` says what is kept of runs;
    ``cache`` is for steps that don't say; ``materializers`` store values of types of your own. ``on_init`` runs once
    per process; what it returns is ``get_context().pipeline_state`` in every step. ``on_cleanup`` runs when the process
    ends, with that state if it takes an argument. Raises DefinitionError, naming the step and the argument, for what
    can't be served.
    """
    decorator = PipelineDecorator(
        name=name,
        dynamic=dynamic,
        capture=capture,
        cache=cache,
        materializers=materializers,
        on_init=on_init,
        on_cleanup=on_cleanup,
    )
    return decorator if fn is None else decorator.make(fn, caller_names())


class PipelineDecorator:
    """``@pipeline(...)`` with its options, before it meets its function."""

    def __init__(
        self,
        *,
        name: str | None,
        dynamic: bool,
        capture: Capture | None,
        cache: Cache | bool,
        materializers: Sequence[Materializer[Any]],
        on_init: Callable[[], Any] | None,
        on_cleanup: Callable[..., Any] | None,
    ) -> None:
        if not isinstance(cast(object, capture or Capture()), Capture):
            raise DefinitionError(f"@pipeline: capture must be a Capture(...), not {capture!r}")
        for materializer in cast(Sequence[object], materializers):
            if not isinstance(materializer, Materializer):
                raise DefinitionError(f"@pipeline: materializers must be Materializer objects, not {materializer!r}")
        for option, hook in (("on_init", on_init), ("on_cleanup", on_cleanup)):
            if hook is not None and not callable(hook):
                raise DefinitionError(f"@pipeline: {option} must be a function, not {hook!r}")
        self._name = name
        self._dynamic = dynamic
        self._capture = capture or Capture()
        self._cache = cache_policy(cache, "@pipeline")
        self._materializers = tuple(materializers)
        self._on_init = on_init
        self._on_cleanup = on_cleanup

    def __call__(self, fn: Callable[P, R], /) -> Pipeline[P, R]:
        return self.make(fn, caller_names())

    def make(self, fn: Callable[P, R], local_names: dict[str, Any]) -> Pipeline[P, R]:
        """The pipeline. ``local_names`` resolve annotations that name types of an enclosing function."""
        name = self._name or getattr(fn, "__name__", "pipeline")
        if isinstance(fn, Step):
            raise DefinitionError(f"pipeline {name!r}: @pipeline takes a function that calls steps, not a step")
        hints = type_hints(fn, local_names)
        returns = hints.get("return", Any)
        mode = mode_of(fn, returns)
        parameters = parameters_of("pipeline", name, fn, hints)
        declared = outputs_of(returns, mode)
        common: dict[str, Any] = {
            "name": name,
            "fn": fn,
            "mode": mode,
            "dynamic": self._dynamic,
            "doc": inspect.getdoc(fn),
            "parameters_list": parameters,
            "capture": self._capture,
            "cache": self._cache,
            "materializers": self._materializers,
            "on_init": self._on_init,
            "on_cleanup": self._on_cleanup,
            "signature": inspect.signature(fn),
        }
        if self._dynamic:
            steps = _steps_named_in(fn, local_names)
            nothing = returns is None or returns is type(None)
            definition = PipelineDefinition(
                **common,
                nodes=(),
                steps=steps,
                outputs=(),
                returned=None,
                returns=() if nothing else declared,
                fingerprint=fingerprint(name, [fn, *(step.fn for step in steps)]),
            )
        else:
            definition = self._trace(name, fn, mode, parameters, declared, local_names, common)
        _ = definition.parameters  # an argument that JSON can't carry is refused here, not at the first request
        return Pipeline(definition)

    def _trace(
        self,
        name: str,
        fn: Callable[..., Any],
        mode: Mode,
        parameters: tuple[Parameter, ...],
        declared: tuple[Output, ...],
        local_names: dict[str, Any],
        common: dict[str, Any],
    ) -> PipelineDefinition:
        if mode.streams:
            raise DefinitionError(
                f"pipeline {name!r} yields, but a static pipeline only draws a graph; yield in a step, or use "
                "@pipeline(dynamic=True)"
            )
        refuse_identity_tests(name, fn, [parameter.name for parameter in parameters], local_names)
        tracer = Tracer(name, fn)
        positional = [
            Placeholder(FromParameter(parameter.name), tracer.refuse)
            for parameter in parameters
            if not parameter.keyword_only
        ]
        named = {
            parameter.name: Placeholder(FromParameter(parameter.name), tracer.refuse)
            for parameter in parameters
            if parameter.keyword_only
        }
        returned = tracer.trace(lambda: fn(*positional, **named), mode)
        nodes = tracer.nodes()
        steps = tuple({id(node.step): node.step for node in nodes}.values())
        return PipelineDefinition(
            **common,
            nodes=nodes,
            steps=steps,
            outputs=tracer.outputs(returned, declared),
            returned=None if returned is None else tracer.returned(returned),
            returns=(),
            fingerprint=fingerprint(name, [fn, *(step.fn for step in steps)]),
        )


def _steps_named_in(fn: Callable[..., Any], local_names: dict[str, Any]) -> tuple[StepDefinition, ...]:
    """The steps that a dynamic body names directly: globals, closure and ``module.step``."""
    code = getattr(fn, "__code__", None)
    if code is None:
        return ()
    known: dict[str, Any] = {
        **getattr(fn, "__globals__", {}),
        **{name: local_names.get(name) for name in code.co_freevars},
    }
    found: dict[str, StepDefinition] = {}
    for name in (*code.co_names, *code.co_freevars):
        value = known.get(name)
        candidates: list[Any] = [value]
        if inspect.ismodule(value):
            candidates = [getattr(value, other, None) for other in code.co_names]
        for candidate in candidates:
            if isinstance(candidate, Step):
                found.setdefault(candidate.definition.name, candidate.definition)
    return tuple(found.values())
