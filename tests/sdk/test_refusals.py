"""What can't be served is refused at decoration, in words that name the step, the argument and the line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import pytest

from pipeserve import DefinitionError, pipeline, step


@dataclass
class Wrapper:
    value: Any


@step
def double(x: int) -> int:
    return 2 * x


@step
def wrap(value: Any) -> Any:
    return value


def branches(x: int) -> int:
    return double(x) if x else 0


def loops(x: int) -> Any:
    return [double(value) for value in range(x)]


def iterates(x: list[int]) -> Any:
    return [double(value) for value in x]


def computes(x: int) -> int:
    return double(x + 1)


def computes_from_the_right(x: int) -> int:
    return double(1 + x)


def formats(x: int) -> Any:
    return wrap(f"{x}!")


def compares(x: int) -> Any:
    return wrap(x == 3)


def measures(x: str) -> Any:
    return wrap(len(x))


def calls(x: str) -> Any:
    return wrap(x.upper())


def searches(x: str) -> Any:
    return wrap("a" in x)


def checks_identity(x: int | None = None) -> Any:
    return wrap(3 if x is None else x)


def checks_type(x: Any) -> Any:
    return wrap(1 if isinstance(x, int) else 2)


def swallows(x: int) -> Any:
    try:
        return wrap(x + 1)
    except TypeError:
        return wrap(0)


def checks_a_result(x: int) -> Any:
    result = double(x)
    return wrap(1) if result > 3 else wrap(2)


BODIES = [
    branches,
    loops,
    iterates,
    computes,
    computes_from_the_right,
    formats,
    compares,
    measures,
    calls,
    searches,
    checks_identity,
    checks_type,
    swallows,
    checks_a_result,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_a_static_body_that_needs_a_value_is_refused_with_its_line(body: Callable[..., Any]) -> None:
    first = inspect.getsourcelines(body)[1]
    with pytest.raises(DefinitionError, match=r"dynamic=True") as caught:
        pipeline(body)
    line = int(str(caught.value).split(f"{__file__}:")[1].split(")")[0])
    assert first < line <= first + 4


def test_a_missing_argument_names_step_and_argument() -> None:
    with pytest.raises(DefinitionError, match=r"step 'double' can't be called like this: missing .* argument: 'x'"):

        @pipeline
        def served(x: int) -> int:
            return double()  # type: ignore[call-arg]


def test_an_unknown_argument_names_step_and_argument() -> None:
    with pytest.raises(DefinitionError, match=r"step 'double'.*unexpected keyword argument 'y'"):

        @pipeline
        def served(x: int) -> int:
            return double(x, y=1)  # type: ignore[call-arg]


def test_a_cycle_names_its_steps() -> None:
    with pytest.raises(DefinitionError, match=r"(left → right|right → left).*a cycle"):

        @pipeline
        def served(x: int) -> int:
            return double.with_name("left").after("right")(double.with_name("right").after("left")(x))


def test_after_an_unknown_call_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"step 'double' comes after 'nothing', but no call has that name"):

        @pipeline
        def served(x: int) -> int:
            return double.after("nothing")(x)


def test_two_calls_of_one_name_are_refused() -> None:
    with pytest.raises(DefinitionError, match="two calls are named 'same'"):

        @pipeline
        def served(x: int) -> Any:
            return wrap([double.with_name("same")(x), double.with_name("same")(x)])


def test_a_value_made_in_the_body_around_a_placeholder_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"argument 'value' of step 'wrap' is a Wrapper .* parameter 'x'"):

        @pipeline
        def served(x: int) -> Any:
            return wrap(Wrapper(x))


def test_a_pipeline_default_that_json_cannot_carry_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"pipeline 'served': the default of argument 'x' \(object\)"):

        @pipeline
        def served(x: object = object()) -> Any:
            return wrap(x)


def test_a_pipeline_argument_of_a_type_that_json_cannot_carry_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"pipeline 'served': argument 'work' has a type that JSON can't carry"):

        @pipeline
        def served(work: Callable[[], inspect.Signature]) -> Any:
            return wrap(work)


def test_a_static_pipeline_that_yields_is_refused() -> None:
    with pytest.raises(DefinitionError, match="yields, but a static pipeline"):

        @pipeline
        def served(x: int) -> Iterator[int]:
            yield double(x)


async def test_awaiting_what_is_no_step_is_refused() -> None:
    import asyncio

    with pytest.raises(DefinitionError, match="awaits something that is no step"):

        @pipeline
        async def served(x: int) -> int:
            await asyncio.sleep(0)
            return double(x)


def test_a_wrong_timeout_and_a_dotted_name_are_refused() -> None:
    with pytest.raises(DefinitionError, match="step 'late': timeout must be more than 0"):
        step(name="late", timeout=0)(double.fn)
    with pytest.raises(DefinitionError, match=r"can't be named 'a\.b'"):
        step(name="a.b")(double.fn)


class Pair(NamedTuple):
    left: Any
    right: Any


def formats_a_representation(x: int) -> Any:
    return wrap(f"hello {x!r}")


def formats_a_list(x: int) -> Any:
    return wrap(f"{[x]}")


def hides_in_a_named_tuple(x: int) -> Any:
    return wrap(Pair(x, 1))


def hides_in_a_nested_list(x: int) -> Any:
    return wrap(Wrapper([x]))


def slices(x: list[int], n: int = 2) -> Any:
    return wrap(x[:n])


def checks_identity_of_a_result(x: int) -> Any:
    result = double(x)
    return wrap(1 if result is None else 2)


def checks_identity_of_a_part(x: dict[str, int]) -> Any:
    return wrap(1 if x["a"] is None else 2)


def sets_an_attribute(x: Any) -> Any:
    x.name = 1
    return wrap(x)


LATER_BODIES = [
    formats_a_representation,
    formats_a_list,
    hides_in_a_named_tuple,
    hides_in_a_nested_list,
    slices,
    checks_identity_of_a_result,
    checks_identity_of_a_part,
    sets_an_attribute,
]


@pytest.mark.parametrize("body", LATER_BODIES, ids=lambda body: body.__name__)
def test_no_placeholder_silently_becomes_a_value(body: Callable[..., Any]) -> None:
    with pytest.raises(DefinitionError):
        pipeline(body)


def test_what_a_plain_helper_returns_may_be_tested() -> None:
    def settings() -> dict[str, int] | None:
        return None

    @pipeline
    def served(x: int) -> int:
        found = settings()
        return double(x) if found is None else 0

    assert served(2) == 4


def test_a_dynamic_pipeline_in_a_static_one_is_refused() -> None:
    @pipeline(dynamic=True)
    def inner(x: int) -> int:
        return double(x) if x else 0

    with pytest.raises(DefinitionError, match="pipeline 'inner' is dynamic"):

        @pipeline
        def outer(x: int) -> int:
            return inner(x)


def test_an_annotation_that_names_another_number_of_outputs_is_refused() -> None:
    with pytest.raises(DefinitionError, match="names 2 outputs, and its body returns 1"):

        @pipeline
        def served(x: int) -> tuple[Annotated[int, "a"], Annotated[int, "b"]]:
            return double(x)  # type: ignore[return-value]


def test_two_outputs_of_one_name_are_refused() -> None:
    with pytest.raises(DefinitionError, match=r"two of its outputs have one name \(a, a\)"):

        @pipeline
        def served(x: int) -> tuple[Annotated[int, "a"], Annotated[int, "a"]]:
            return double(x), double(x)
