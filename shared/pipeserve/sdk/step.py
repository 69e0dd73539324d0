"""``@step``: a typed function becomes a step that pipelines call and tests call plainly."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Generic, ParamSpec, TypeVar, overload

from pipeserve.errors import DefinitionError
from pipeserve.sdk.annotations import caller_names, mode_of, outputs_of, parameters_of, type_hints
from pipeserve.sdk.context import current_scope
from pipeserve.sdk.definition import StepDefinition

P = ParamSpec("P")
R = TypeVar("R")
Y = TypeVar("Y")


class Step(Generic[P, R]):
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

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        scope = current_scope.get()
        if scope is None:
            return self.definition.fn(*args, **kwargs)
        return scope.call_step(self, args, kwargs)

    def with_name(self, name: str) -> Step[P, R]:
        """This step under another name for one call: ``double.with_name("left")(x)``."""
        if not name or "." in name:
            raise DefinitionError(
                f"step {self.definition.name!r}: {name!r} can't be a call's name; use letters, digits and _"
            )
        return Step(self.definition, call_name=name, after=self.after_calls)

    def after(self, *calls: object) -> Step[P, R]:
        """This step ordered after other calls without taking their values: ``publish.after(checked)(x)``.

        ``calls`` are results of steps, or names of calls in the same static pipeline.
        """
        return Step(self.definition, call_name=self.call_name, after=(*self.after_calls, *calls))

    def __repr__(self) -> str:
        return f"<step {self.definition.name}>"


@overload
def step(fn: Callable[P, AsyncIterator[Y]], /) -> Step[P, Coroutine[Any, Any, list[Y]]]: ...
@overload
def step(fn: Callable[P, Iterator[Y]], /) -> Step[P, list[Y]]: ...
@overload
def step(fn: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(*, name: str | None = None, timeout: float | None = None) -> StepDecorator: ...


def step(fn: Any = None, /, *, name: str | None = None, timeout: float | None = None) -> Any:
    """Make a step of a typed function: ``@step`` or ``@step(timeout=5)``.

    ``name`` defaults to the function's; ``timeout`` bounds one call, in seconds. The function may be ``def``,
    ``async def`` or a generator of either kind, whose yields are streamed as ``output`` events and whose value in a
    pipeline is their list. Raises DefinitionError for a function that can't be served.
    """
    decorator = StepDecorator(name=name, timeout=timeout)
    return decorator if fn is None else decorator.make(fn, caller_names())


class StepDecorator:
    """``@step(...)`` with its options, before it meets its function."""

    def __init__(self, *, name: str | None, timeout: float | None) -> None:
        self._name = name
        self._timeout = timeout

    @overload
    def __call__(self, fn: Callable[P, AsyncIterator[Y]], /) -> Step[P, Coroutine[Any, Any, list[Y]]]: ...
    @overload
    def __call__(self, fn: Callable[P, Iterator[Y]], /) -> Step[P, list[Y]]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Step[P, R]: ...

    def __call__(self, fn: Any, /) -> Any:
        return self.make(fn, caller_names())

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
        definition = StepDefinition(
            name=name,
            fn=fn,
            mode=mode,
            parameters=parameters_of("step", name, fn, hints),
            outputs=outputs_of(returns, mode),
            timeout=self._timeout,
            doc=inspect.getdoc(fn),
            signature=inspect.signature(fn),
        )
        return Step(definition)
