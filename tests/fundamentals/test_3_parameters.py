"""Chapter 3: a request's parameters bind as a Python call would, and reach into steps that the pipeline left alone."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from pipeserve import pipeline, step
from pipeserve.errors import InvalidParametersError
from pipeserve.testing import run_pipeline


class Options(BaseModel):
    lower: bool = False


@step
def clean(text: str, strip: bool = True) -> str:
    return text.strip() if strip else text


@step
def repeat(text: str, times: int = 2, mark: str = "") -> str:
    return mark + text * times


@step
def convert(text: str, options: Options) -> str:
    return text.lower() if options.lower else text


@pipeline
def served(text: str, count: Annotated[int, Field(ge=1)] = 2, options: Options | None = None) -> dict[str, Any]:
    """Clean and repeat."""
    cleaned = clean(text)
    return {"counted": repeat(cleaned, count), "twice": repeat(cleaned)}


@pipeline
def nested(text: str, options: Options) -> str:
    return convert(text, options)


def refused(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    with pytest.raises(InvalidParametersError) as caught:
        run_pipeline(served, parameters)
    assert caught.value.errors is not None
    return caught.value.errors


def test_pipeline_parameters_bind_as_a_call() -> None:
    assert run_pipeline(served, text=" a ").outputs == {"counted": "aa", "twice": "aa"}
    assert run_pipeline(served, text="a", count=3).outputs == {"counted": "aaa", "twice": "aa"}


def test_a_dotted_key_sets_a_parameter_that_the_pipeline_left_at_its_default() -> None:
    run = run_pipeline(served, {"text": "a", "repeat_2.times": 4, "repeat.mark": "-"})
    assert run.outputs == {"counted": "-aa", "twice": "aaaa"}


def test_a_bare_key_works_where_one_step_has_it() -> None:
    assert run_pipeline(served, text=" a", strip=False).outputs["twice"] == " a a"


def test_a_bare_key_that_several_steps_have_is_refused_with_the_choices() -> None:
    [error] = refused({"text": "a", "mark": "x"})
    assert error["detail"] == "parameter 'mark' is ambiguous: say which of repeat.mark, repeat_2.mark"


def test_a_wired_parameter_cannot_be_set() -> None:
    [error] = refused({"text": "a", "repeat.text": "b"})
    assert error["detail"] == "parameter 'repeat.text' can't be set: the pipeline wires it to step clean"


def test_every_wrong_key_is_named() -> None:
    errors = refused({"cuont": 3, "count": "many"})
    assert {(error["name"], error["type"]) for error in errors} == {
        ("text", "missing"),
        ("cuont", "unknown"),
        ("count", "int_parsing"),
    }
    assert any("did you mean 'count'?" in error["detail"] for error in errors)


def test_constraints_of_the_annotation_hold() -> None:
    [error] = refused({"text": "a", "count": 0})
    assert error["name"] == "count"


def test_refusals_never_repeat_values() -> None:
    errors = refused({"text": {"secret": "hunter2"}, "hunter3": "hunter2"})
    assert "hunter2" not in str(errors)


def test_models_are_validated_and_passed_as_models() -> None:
    assert run_pipeline(nested, {"text": "ABC", "options": {"lower": True}}).outputs == {"output": "abc"}


def test_both_spellings_of_one_parameter_are_refused() -> None:
    [error] = refused({"text": "a", "strip": True, "clean.strip": False})
    assert error["type"] == "duplicate"


def test_the_input_schema_shows_every_key_that_can_be_set() -> None:
    schema = served.definition.input_schema()
    assert set(schema["properties"]) == {
        "text",
        "count",
        "options",
        "clean.strip",
        "strip",
        "repeat.mark",
        "repeat_2.times",
        "repeat_2.mark",
    }
    assert schema["required"] == ["text"]


def test_parameters_named_like_methods_of_models_work() -> None:
    @step
    def show(value: str) -> str:
        return value

    @pipeline
    def awkward(copy: str, json: str = "j", model_fields: str = "f") -> list[str]:
        return [show(copy), show(json), show(model_fields)]

    assert run_pipeline(awkward, copy="c").outputs == {"output": ["c", "j", "f"]}
