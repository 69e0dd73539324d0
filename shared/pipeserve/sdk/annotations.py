"""Reads types off a function: its parameters, its outputs and how it runs."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation
from pydantic_core import PydanticSerializationError

from pipeserve.errors import DefinitionError
from pipeserve.sdk.definition import REQUIRED, Mode, Output, Parameter

_SYNC_STREAMS = (Iterator, Generator)
_ASYNC_STREAMS = (AsyncIterator, AsyncGenerator)
_STREAMS = (*_SYNC_STREAMS, *_ASYNC_STREAMS, Iterable)


def caller_names(depth: int = 2) -> dict[str, Any]:
    """The local names where a decorator is applied, ``depth`` calls up: an annotation may name a type of an enclosing
    function, which the decorated function's own globals don't know."""
    frame = inspect.currentframe()
    for _ in range(depth):
        frame = frame.f_back if frame is not None else None
    return {} if frame is None else dict(frame.f_locals)


def type_hints(fn: Callable[..., Any], local_names: dict[str, Any]) -> dict[str, Any]:
    """The function's annotations as types; ``Any`` for one whose name can't be found (a TYPE_CHECKING import)."""
    try:
        return get_type_hints(fn, localns=local_names, include_extras=True)
    except NameError:
        hints: dict[str, Any] = {}
        for name, annotation in _unresolved(fn).items():
            holder = types.SimpleNamespace(__annotations__={name: annotation})
            try:
                hints |= get_type_hints(holder, globalns=fn.__globals__, localns=local_names, include_extras=True)
            except NameError:
                hints[name] = Any
        return hints


def _unresolved(fn: Callable[..., Any]) -> dict[str, Any]:
    if sys.version_info >= (3, 14):  # annotations are code there: asking for their values raises the NameError again
        from annotationlib import Format, get_annotations

        return get_annotations(fn, format=Format.FORWARDREF)
    return inspect.get_annotations(fn)


def mode_of(fn: Callable[..., Any], returns: Any) -> Mode:
    """How ``fn`` runs. A plain function that says it returns an iterator streams as well."""
    origin = get_origin(get_args(returns)[0] if get_origin(returns) is Annotated else returns)
    if inspect.isasyncgenfunction(fn):
        return Mode.ASYNC_GENERATOR
    if inspect.iscoroutinefunction(fn):
        return Mode.ASYNC
    if inspect.isgeneratorfunction(fn) or origin in _SYNC_STREAMS:
        return Mode.GENERATOR
    return Mode.ASYNC_GENERATOR if origin in _ASYNC_STREAMS else Mode.SYNC


def outputs_of(returns: Any, mode: Mode) -> tuple[Output, ...]:
    """The outputs that a return annotation names; ``output`` where it names none."""
    name, value = _name_of(returns), _without_name(returns)
    if mode.streams:
        stream, *notes = get_args(value) if get_origin(value) is Annotated else [value]
        inner = get_args(stream)[0] if get_origin(stream) in _STREAMS and get_args(stream) else Any
        whole: Any = list[inner]
        return (Output(name or "output", Annotated[whole, *notes] if notes else whole),)
    if get_origin(value) is tuple and name is None:
        members = [(_name_of(member), _without_name(member)) for member in get_args(value)]
        if len(members) > 1 and all(member_name for member_name, _ in members):
            return tuple(Output(str(member_name), annotation) for member_name, annotation in members)
    return (Output(name or "output", value),)


def one_of_batch(name: str, parameters: tuple[Parameter, ...], returns: Any) -> tuple[tuple[Parameter, ...], Any]:
    """Parameters and return type of a batched step as a pipeline sees them: one item of each list.

    Raises DefinitionError for a parameter that is no list, or has a default: a default would be a whole batch's.
    """
    items: list[Parameter] = []
    for parameter in parameters:
        if parameter.annotation not in (Any, list) and get_origin(parameter.annotation) is not list:
            raise DefinitionError(
                f"step {name!r}: a batched step takes a list for each parameter; {parameter.name!r} is declared "
                f"{parameter.annotation!r}"
            )
        if not parameter.required:
            raise DefinitionError(f"step {name!r}: parameter {parameter.name!r} of a batched step can't have a default")
        items.append(Parameter(parameter.name, _item_of(parameter.annotation), REQUIRED, parameter.keyword_only))
    if not items:
        raise DefinitionError(f"step {name!r}: a batched step needs a parameter to gather")
    if returns not in (Any, list, Sequence) and get_origin(returns) not in (list, Sequence):
        raise DefinitionError(
            f"step {name!r}: a batched step returns a list, one result for each item, not {returns!r}"
        )
    return tuple(items), _item_of(returns)


def _item_of(annotation: Any) -> Any:
    return next(iter(get_args(annotation)), Any)


def parameters_of(kind: str, name: str, fn: Callable[..., Any], hints: dict[str, Any]) -> tuple[Parameter, ...]:
    """The parameters of a step or pipeline (``kind``). Raises DefinitionError for what a request can't name."""
    parameters: list[Parameter] = []
    for parameter in inspect.signature(fn).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            raise DefinitionError(
                f"{kind} {name!r}: argument {stars}{parameter.name} has no name that a request could use; "
                "write each argument out, or take one list or dict"
            )
        annotation = hints.get(parameter.name, Any)
        if parameter.default is not REQUIRED:
            _check_default(kind, name, parameter.name, annotation, parameter.default)
        parameters.append(
            Parameter(parameter.name, annotation, parameter.default, parameter.kind is parameter.KEYWORD_ONLY)
        )
    return tuple(parameters)


def _check_default(kind: str, name: str, argument: str, annotation: Any, default: Any) -> None:
    adapter: TypeAdapter[Any]
    try:
        adapter = TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        adapter = TypeAdapter(Any)
    try:
        # A default of the wrong type (`x: int = None`) is the author's business; only JSON matters here.
        adapter.dump_json(default, warnings=False)
    except (PydanticSerializationError, ValueError, TypeError) as error:
        raise DefinitionError(
            f"{kind} {name!r}: the default of argument {argument!r} ({type(default).__name__}) can't be JSON: "
            "no schema could show it and no request replace it; use None and make the value inside"
        ) from error


def _name_of(annotation: Any) -> str | None:
    if get_origin(annotation) is Annotated:
        return next((item for item in get_args(annotation)[1:] if isinstance(item, str)), None)
    return None


def _without_name(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated and _name_of(annotation) is not None:
        value, *rest = (item for item in get_args(annotation) if not isinstance(item, str))
        return Annotated[value, *rest] if rest else value
    return annotation
