"""Reads a static pipeline's body once, with placeholders for its parameters, into a graph of step calls."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, NoReturn, cast

from pydantic import BaseModel

from pipeserve.errors import DefinitionError
from pipeserve.sdk.arguments import Argument, Collection, Constant, Default, FromNode, sources
from pipeserve.sdk.context import current_scope
from pipeserve.sdk.definition import Mode, Node, Output, PipelineOutput
from pipeserve.sdk.placeholder import Placeholder, placeholder_label, source_of
from pipeserve.sdk.step import Step

_TOO_EARLY = (
    "but a static pipeline is read once, before there are values. Do it inside a step, or let the body run for each "
    "request: @pipeline(dynamic=True)"
)


class Tracer:
    """The scope in which a static pipeline's body runs once. Collects a :class:`Node` for each step call."""

    def __init__(self, pipeline_name: str, fn: Callable[..., Any]) -> None:
        self.pipeline_name = pipeline_name
        self._bodies = [(pipeline_name, fn)]
        self._nodes: dict[str, Node] = {}
        self._refused: DefinitionError | None = None

    def trace(self, call: Callable[[], Any], mode: Mode) -> Any:
        """What the body returned, with placeholders in it."""
        token = current_scope.set(self)
        try:
            returned = call()
            if mode is Mode.ASYNC:
                returned = self._finish_coroutine(returned)
        finally:
            current_scope.reset(token)
        if self._refused is not None:  # the body caught the refusal (try/except): it still can't be served
            raise self._refused
        return returned

    def _finish_coroutine(self, coroutine: Any) -> Any:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value
        coroutine.close()
        raise DefinitionError(
            f"{self._here()}: its body awaits something that is no step; "
            "a static pipeline is read before any request, so await it inside a step, or use @pipeline(dynamic=True)"
        )

    # ---- what the body does

    def call_step(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Placeholder:
        """Add a call to the graph; its result's placeholder."""
        definition = step.definition
        name = self._new_name(step)
        try:
            bound = definition.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise DefinitionError(f"{self._here()}: step {name!r} can't be called like this: {error}") from None
        arguments: dict[str, Argument] = {
            parameter.name: self._argument(
                bound.arguments[parameter.name], f"argument {parameter.name!r} of step {name!r}"
            )
            if parameter.name in bound.arguments
            else Default(parameter.default)
            for parameter in definition.parameters
        }
        taken = [
            source.node
            for argument in arguments.values()
            for source in sources(argument)
            if isinstance(source, FromNode)
        ]
        after = tuple(dict.fromkeys(self._after(step, name)))
        upstream = tuple(dict.fromkeys([*taken, *after]))
        self._nodes[name] = Node(name, definition, arguments, upstream, after)
        several = len(definition.outputs) if len(definition.outputs) > 1 else None
        return Placeholder(FromNode(name), self.refuse, several)

    def call_pipeline(
        self, name: str, fn: Callable[..., Any], mode: Mode, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A pipeline called in this pipeline's body: its calls join this graph."""
        chain = [body for body, _ in self._bodies]
        if any(body is fn for _, body in self._bodies):
            raise DefinitionError(f"pipeline {name!r} calls itself ({' → '.join([*chain, name])}): a cycle never ends")
        self._bodies.append((name, fn))
        try:
            returned = fn(*args, **kwargs)
            if mode is Mode.ASYNC:
                returned = self._finish_coroutine(returned)
        finally:
            self._bodies.pop()
        return _Awaitable(returned) if mode is Mode.ASYNC else returned

    def _new_name(self, step: Step[..., Any]) -> str:
        if step.call_name is not None:
            if step.call_name in self._nodes:
                raise DefinitionError(f"{self._here()}: two calls are named {step.call_name!r}; names must differ")
            return step.call_name
        base = name = step.definition.name
        count = 1
        while name in self._nodes:
            count += 1
            name = f"{base}_{count}"
        return name

    def _after(self, step: Step[..., Any], name: str) -> Iterable[str]:
        for call in step.after_calls:
            if isinstance(call, str):
                yield call
            elif isinstance(call, Placeholder) and isinstance(source := source_of(call), FromNode):
                yield source.node
            else:
                raise DefinitionError(
                    f"{self._here()}: step {name!r} can only come after results of steps "
                    f"or names of calls, not {placeholder_label(call) if isinstance(call, Placeholder) else call!r}"
                )

    def _argument(self, value: Any, where: str) -> Argument:
        if isinstance(value, Placeholder):
            return source_of(value)
        # Exact types only: a named tuple or an ordered dict is not rebuilt as something else.
        kind = cast(type[Any], type(value))
        if kind in (list, tuple, set, frozenset):
            items = cast(Iterable[Any], value)
            return Collection(kind, tuple(self._argument(item, where) for item in items))
        if kind is dict:
            mapping = cast(dict[Any, Any], value)
            return Collection(dict, tuple(self._argument(item, where) for item in mapping.values()), tuple(mapping))
        if (hidden := _hidden_placeholder(value, set())) is not None:
            raise DefinitionError(
                f"{self._here()}: {where} is a {type(value).__name__} made in the body around "
                f"{placeholder_label(hidden)}, whose value isn't there yet; make it inside a step"
            )
        return Constant(value)

    # ---- what comes out

    def nodes(self) -> tuple[Node, ...]:
        """Every call, each after all that it needs, otherwise in the order of the body. Raises for a cycle."""
        for node in self._nodes.values():
            for name in node.upstream:
                if name not in self._nodes:
                    raise DefinitionError(
                        f"{self._here()}: step {node.name!r} comes after {name!r}, but no call has that name"
                    )
        sorter = TopologicalSorter({node.name: node.upstream for node in self._nodes.values()})
        try:
            return tuple(self._nodes[name] for name in sorter.static_order())
        except CycleError as error:
            cycle: Sequence[str] = error.args[1]
            raise DefinitionError(
                f"{self._here()}: steps {' → '.join(reversed(cycle))} wait for each other: a cycle; "
                "take one .after(...) away"
            ) from None

    def outputs(self, returned: Any, declared: tuple[Output, ...]) -> tuple[PipelineOutput, ...]:
        """The pipeline's outputs, from what its body returned and what its annotation names."""
        outputs = () if returned is None else self._all_outputs(returned, declared)
        names = [output.name for output in outputs]
        if len(set(names)) < len(names):
            raise DefinitionError(
                f"{self._here()}: two of its outputs have one name ({', '.join(names)}); name them: "
                'tuple[Annotated[A, "a"], Annotated[B, "b"]], or return a dict'
            )
        if len(declared) > 1 and len(outputs) != len(declared):
            raise DefinitionError(
                f"{self._here()}: its annotation names {len(declared)} outputs, and its body returns {len(outputs)}"
            )
        return outputs

    def _all_outputs(self, returned: Any, declared: tuple[Output, ...]) -> tuple[PipelineOutput, ...]:
        first = declared[0]
        named = first.name != "output" or len(declared) > 1
        if type(returned) is dict:
            mapping = cast(dict[Any, Any], returned)
            return tuple(self._output(str(key), value, Any) for key, value in mapping.items())
        if isinstance(returned, Placeholder) and self._several(returned):
            parts = list(returned)
            own = self._nodes[self._node_of(returned)].step.outputs
            names = declared if len(declared) == len(parts) and named else own
            return tuple(
                self._output(output.name, part, output.annotation) for output, part in zip(names, parts, strict=True)
            )
        if type(returned) is tuple and returned:
            members = cast(tuple[Any, ...], returned)
            if named and len(declared) == len(members):
                return tuple(
                    self._output(output.name, value, output.annotation)
                    for output, value in zip(declared, members, strict=True)
                )
            return self._named_by_steps(members)
        name = first.name
        if not named and isinstance(returned, Placeholder):
            name = self._own_name(returned) or name
        return (self._output(name, returned, first.annotation),)

    def returned(self, value: Any) -> Argument:
        """What the body returned, as an argument: plain Python's own answer."""
        return self._argument(value, "its return value")

    def _named_by_steps(self, values: tuple[Any, ...]) -> tuple[PipelineOutput, ...]:
        names = [self._own_name(value) if isinstance(value, Placeholder) else None for value in values]
        outputs: list[PipelineOutput] = []
        for index, (name, value) in enumerate(zip(names, values, strict=True)):
            unique = name is not None and names.count(name) == 1
            if unique:
                chosen = str(name)
            elif isinstance(value, Placeholder) and isinstance(source := source_of(value), FromNode):
                chosen = f"{source.node}.{name or 'output'}"
            else:
                chosen = f"output_{index}"
            outputs.append(self._output(chosen, value, Any))
        return tuple(outputs)

    def _output(self, name: str, value: Any, annotation: Any) -> PipelineOutput:
        argument = self._argument(value, f"output {name!r}")
        if isinstance(argument, Constant) and not isinstance(value, (str, int, float, bool, type(None))):
            raise DefinitionError(
                f"{self._here()}: output {name!r} is a {type(value).__name__} made in the body; "
                "return results of steps, or a list, tuple or dict of them"
            )
        step_name = argument.node if isinstance(argument, FromNode) else None
        if annotation is Any and isinstance(argument, FromNode):
            annotation = self._annotation(argument)
        return PipelineOutput(name, argument, annotation, step_name)

    def _annotation(self, source: FromNode) -> Any:
        outputs = self._nodes[source.node].step.outputs
        if len(outputs) == 1:
            return outputs[0].annotation if not source.path else Any
        index = source.path[0][1] if len(source.path) == 1 else None
        return outputs[index].annotation if isinstance(index, int) else Any

    def _several(self, placeholder: Placeholder) -> bool:
        source = source_of(placeholder)
        return isinstance(source, FromNode) and not source.path and len(self._nodes[source.node].step.outputs) > 1

    def _node_of(self, placeholder: Placeholder) -> str:
        source = source_of(placeholder)
        assert isinstance(source, FromNode)
        return source.node

    def _own_name(self, placeholder: Placeholder) -> str | None:
        source = source_of(placeholder)
        if not isinstance(source, FromNode):
            return source.name
        outputs = self._nodes[source.node].step.outputs
        if len(outputs) == 1:
            return outputs[0].name
        index = source.path[0][1] if source.path else None
        return outputs[index].name if isinstance(index, int) and 0 <= index < len(outputs) else None

    # ---- what a body may not do

    def refuse(self, placeholder: Placeholder, operation: str) -> NoReturn:
        """Raise for an operation that needs a value."""
        self._refused = DefinitionError(
            f"{self._here()}: {placeholder_label(placeholder)} is {operation}, {_TOO_EARLY}"
        )
        raise self._refused

    def _here(self) -> str:
        """The pipeline and, while its body runs, the line that it is at."""
        codes = {fn.__code__ for _, fn in self._bodies if hasattr(fn, "__code__")}
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code in codes:
                return f"pipeline {self.pipeline_name!r} ({frame.f_code.co_filename}:{frame.f_lineno})"
            frame = frame.f_back
        return f"pipeline {self.pipeline_name!r}"


def _hidden_placeholder(value: Any, seen: set[int]) -> Placeholder | None:
    """A placeholder somewhere inside a value that the body made."""
    if isinstance(value, Placeholder):
        return value
    if id(value) in seen or isinstance(value, (str, bytes, int, float, type(None), type)):
        return None
    seen.add(id(value))
    members: list[Any] = []
    if isinstance(value, Mapping):
        mapping = cast(Mapping[Any, Any], value)
        members += [*mapping.keys(), *mapping.values()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        members += cast(Iterable[Any], value)
    elif isinstance(value, slice):
        parts = cast("slice[Any, Any, Any]", value)
        members += [parts.start, parts.stop, parts.step]
    elif dataclasses.is_dataclass(value) or isinstance(value, BaseModel):
        members += vars(value).values() if hasattr(value, "__dict__") else ()
    return next((hidden for member in members if (hidden := _hidden_placeholder(member, seen)) is not None), None)


class _Awaitable:
    """A traced sub-pipeline's result, which an async body awaits."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Any:
        return self._value
        yield


def refuse_identity_tests(
    pipeline_name: str, fn: Callable[..., Any], parameters: Iterable[str], local_names: Mapping[str, Any]
) -> None:
    """Refuse ``x is None``, ``isinstance(x, T)`` and ``match x`` on parameters, results of steps and parts of these:
    Python lets no placeholder catch them, and the body would silently be read with the wrong answer."""
    try:
        source, first_line = inspect.getsourcelines(fn)
        tree = ast.parse(textwrap.dedent("".join(source)))
    except (OSError, SyntaxError):
        return  # no source (a console, a lambda in an expression): nothing to read
    known: dict[str, Any] = {**getattr(fn, "__globals__", {}), **local_names}
    names = {*parameters, *_names_of_results(tree, known)}
    for node in ast.walk(tree):
        tested: list[ast.expr] = []
        if isinstance(node, ast.Compare) and any(isinstance(operator, (ast.Is, ast.IsNot)) for operator in node.ops):
            tested = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            tested = node.args[:1]
        elif isinstance(node, ast.Match):
            tested = [node.subject]
        for expression in tested:
            name = _root(expression)
            if isinstance(name, ast.Name) and name.id in names:
                place = f"{inspect.getsourcefile(fn)}:{first_line + name.lineno - 1}"
                raise DefinitionError(f"pipeline {pipeline_name!r} ({place}): {name.id!r} is tested, {_TOO_EARLY}")


def _root(expression: ast.expr) -> ast.expr:
    """``x`` of ``x["a"].b``."""
    while isinstance(expression, (ast.Attribute, ast.Subscript)):
        expression = expression.value
    return expression


def _names_of_results(tree: ast.AST, known: Mapping[str, Any]) -> set[str]:
    """The names that the body gives to what its steps return."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
            targets, value = [node.target], node.value
        else:
            continue
        if isinstance(value, ast.Await):
            value = value.value
        while isinstance(value, ast.Call):  # step(x), step.with_name("a")(x)
            value = _root(value.func)
        if isinstance(value, ast.Name) and isinstance(known.get(value.id), Step):
            names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names
