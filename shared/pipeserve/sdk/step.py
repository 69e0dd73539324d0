"""``@step``: a typed function becomes a step that pipelines call and tests call plainly."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, overload

from pipeserve.errors import DefinitionError
from pipeserve.sdk.annotations import caller_names, mode_of, one_of_batch, outputs_of, parameters_of, type_hints
from pipeserve.sdk.batch import Batch
from pipeserve.sdk.cache import Cache
from pipeserve.sdk.context import current_scope
from pipeserve.sdk.definition import StepDefinition
from pipeserve.sdk.masked_pipeline import result_parts
from pipeserve.sdk.policies import Executor, Policies
from pipeserve.sdk.retry import Retry
from pipeserve.sdk.stream import Streamed

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Y = TypeVar("Y")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")


class Step(Generic[P, R_co]):
    """What ``@step`` makes of a function.

    Called in a static pipeline's body, it adds a call to the graph. Called in a dynamic pipeline's body, it runs at
    once. Called anywhere else, it is its plain function (a generator step then gives its generator).
    """

    __name__: str

    def __init__(
        self, definition: StepDefinition, *, call_name: str | None = None, after: tuple[object, ...] = ()
    ) -> None:
        self.definition = definition
        self.call_name = call_name
        self.after_calls = after
        functools.update_wrapper(self, definition.fn)

    @property
    def fn(self) -> Callable[P, Any]:
        """The plain function."""
        return self.definition.fn

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        scope = current_scope.get()
        if scope is None:
            return self.definition.fn(*args, **kwargs)
        return scope.call_step(self, args, kwargs)

    def with_name(self, name: str) -> Step[P, R_co]:
        """This step under another name for one call: ``double.with_name("left")(x)``."""
        if not name or "." in name:
            raise DefinitionError(
                f"step {self.definition.name!r}: {name!r} can't be a call's name; use letters, digits and _"
            )
        return Step(self.definition, call_name=name, after=self.after_calls)

    def after(self, *calls: object) -> Step[P, R_co]:
        """This step ordered after other calls without taking their values: ``publish.after(checked)(x)``.

        ``calls`` are results of steps, or names of calls in the same static pipeline.
        """
        return Step(self.definition, call_name=self.call_name, after=(*self.after_calls, *calls))

    def __repr__(self) -> str:
        return f"<step {self.definition.name}>"


@overload
def step(fn: Callable[P, AsyncIterator[Y]], /) -> Step[P, Coroutine[Any, Any, Streamed[Y]]]: ...
@overload
def step(fn: Callable[P, Iterator[Y]], /) -> Step[P, Streamed[Y]]: ...
@overload
def step(fn: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(
    *,
    batch: Batch,
    name: str | None = None,
    timeout: float | None = None,
    cache: Cache | bool | None = None,
    retry: Retry | None = None,
    checkpoint: bool = False,
) -> BatchStepDecorator: ...
@overload
def step(
    *,
    name: str | None = None,
    timeout: float | None = None,
    cache: Cache | bool | None = None,
    retry: Retry | None = None,
    checkpoint: bool = False,
    executor: Executor = "thread",
) -> StepDecorator: ...


def step(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    timeout: float | None = None,
    cache: Cache | bool | None = None,
    retry: Retry | None = None,
    batch: Batch | None = None,
    checkpoint: bool = False,
    executor: Executor = "thread",
) -> Any:
    """Make a step of a typed function: ``@step`` or ``@step(timeout=5)``.

    The function may be ``def``, ``async def`` or a generator of either kind, whose yields are streamed as ``output``
    events and whose value in a pipeline is their list. All options work in a service; in a plain call the function is
    just called.

    - ``name``: the function's by default.
    - ``timeout``: seconds that one call may take.
    - ``cache``: True or a :class:`Cache`: use results again. False: never; None: as the pipeline says.
    - ``retry``: call it again when it raises.
    - ``batch``: gather the calls of concurrent requests; the function then takes and returns lists.
    - ``checkpoint``: record its result with the job, so that another attempt at the job goes on after it.
    - ``executor``: ``process`` runs it in a process of its own, which a cancel or a timeout can kill. Its arguments and
      result must pickle, and the function must stand at the top level of its module.

    Raises DefinitionError for a function that can't be served.
    """
    policies = Policies.of(cache=cache, retry=retry, batch=batch, checkpoint=checkpoint, executor=executor)
    make = StepDecorator if batch is None else BatchStepDecorator
    decorator = make(name=name, timeout=timeout, policies=policies)
    return decorator if fn is None else decorator.make(fn, caller_names())


class _Decorator:
    """What both decorators do: read the function and make its step."""

    def __init__(self, *, name: str | None, timeout: float | None, policies: Policies) -> None:
        self._name = name
        self._timeout = timeout
        self._policies = policies

    def make(self, fn: Callable[..., Any], local_names: dict[str, Any]) -> Step[..., Any]:
        """The step. ``local_names`` resolve annotations that name types of an enclosing function."""
        name = self._name or getattr(fn, "__name__", "step")
        if not callable(fn) or inspect.isclass(fn):
            raise DefinitionError(f"@step takes a function, not {fn!r}")
        if not name or "." in name or name.startswith("<"):
            raise DefinitionError(f"a step can't be named {name!r}: requests address its parameters as name.parameter")
        if self._timeout is not None and not self._timeout > 0:
            raise DefinitionError(f"step {name!r}: timeout must be more than 0 seconds, not {self._timeout!r}")
        hints = type_hints(fn, local_names)
        returns = hints.get("return", Any)
        mode = mode_of(fn, returns)
        self._policies.check(name, fn, mode)
        parameters = parameters_of("step", name, fn, hints)
        if self._policies.batch is not None:
            parameters, returns = one_of_batch(name, parameters, returns)
        definition = StepDefinition(
            name=name,
            fn=fn,
            mode=mode,
            parameters=parameters,
            outputs=outputs_of(returns, mode),
            timeout=self._timeout,
            doc=inspect.getdoc(fn),
            signature=inspect.signature(fn),
            cache=self._policies.cache,
            retry=self._policies.retry,
            batch=self._policies.batch,
            checkpoint=self._policies.checkpoint,
            executor=self._policies.executor,
        )
        _refuse_to_store_secrets(definition)
        return Step(definition)


def _refuse_to_store_secrets(definition: StepDefinition) -> None:
    parts = result_parts(definition)
    if parts is None or not parts.secret:
        return
    for asked, option in (
        (definition.checkpoint, "checkpoint=True"),
        (isinstance(definition.cache, Cache) and definition.cache.scope == "shared", 'Cache(scope="shared")'),
    ):
        if asked:
            raise DefinitionError(
                f"step {definition.name!r}: {option} would write its result to the store, and that holds a Secret; "
                "leave it out, or make the result Redact"
            )


class StepDecorator(_Decorator):
    """``@step(...)`` with its options, before it meets its function."""

    @overload
    def __call__(self, fn: Callable[P, AsyncIterator[Y]], /) -> Step[P, Coroutine[Any, Any, Streamed[Y]]]: ...
    @overload
    def __call__(self, fn: Callable[P, Iterator[Y]], /) -> Step[P, Streamed[Y]]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Step[P, R]: ...

    def __call__(self, fn: Any, /) -> Any:
        return self.make(fn, caller_names())


class BatchStepDecorator(_Decorator):
    """``@step(batch=...)`` before it meets its function, which takes and returns lists; the step takes single values.

    Up to four parameters are typed; a step with more works, and is typed as one that takes anything.
    """

    @overload
    def __call__(
        self, fn: Callable[[list[A]], Coroutine[Any, Any, Sequence[R]]], /
    ) -> Step[[A], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self, fn: Callable[[list[A], list[B]], Coroutine[Any, Any, Sequence[R]]], /
    ) -> Step[[A, B], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self, fn: Callable[[list[A], list[B], list[C]], Coroutine[Any, Any, Sequence[R]]], /
    ) -> Step[[A, B, C], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self, fn: Callable[[list[A], list[B], list[C], list[D]], Coroutine[Any, Any, Sequence[R]]], /
    ) -> Step[[A, B, C, D], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, fn: Callable[[list[A]], Sequence[R]], /) -> Step[[A], R]: ...
    @overload
    def __call__(self, fn: Callable[[list[A], list[B]], Sequence[R]], /) -> Step[[A, B], R]: ...
    @overload
    def __call__(self, fn: Callable[[list[A], list[B], list[C]], Sequence[R]], /) -> Step[[A, B, C], R]: ...
    @overload
    def __call__(self, fn: Callable[[list[A], list[B], list[C], list[D]], Sequence[R]], /) -> Step[[A, B, C, D], R]: ...
    @overload
    def __call__(self, fn: Callable[..., Any], /) -> Step[..., Any]: ...

    def __call__(self, fn: Any, /) -> Any:
        return self.make(fn, caller_names())
