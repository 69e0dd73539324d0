from __future__ import annotations

import shlex
from datetime import UTC, date, datetime
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
import pytest
from pydantic import BaseModel, Field, create_model

from pipeserve.cli.banner import Service, banner, curl_lines
from pipeserve.cli.samples import TEXT, sample_parameters
from pipeserve.sdk.deployment import Deployment


class Colour(Enum):
    RED = "red"


class Point(BaseModel):
    x: float
    y: float = 0.0


class Tree(BaseModel):
    value: int
    left: Tree | None = None


@pytest.mark.parametrize(
    "annotation",
    [
        str,
        int,
        float,
        bool,
        date,
        datetime,
        UUID,
        Colour,
        Point,
        Tree,
        Any,
        str | None,
        list[str],
        dict[str, int],
        tuple[int, str],
        list[Point],
        Literal["a", "b"],
        Annotated[str, Field(max_length=10)],
        Annotated[str, Field(min_length=500)],
        Annotated[int, Field(ge=10, le=20)],
        Annotated[int, Field(gt=5)],
        Annotated[int, Field(lt=-5)],
        Annotated[int, Field(ge=4, multiple_of=3)],
        Annotated[float, Field(gt=0, lt=0.25)],
        Annotated[list[Annotated[list[float], Field(min_length=8, max_length=8)]], Field(min_length=8, max_length=8)],
    ],
    ids=str,
)
def test_a_sample_is_accepted_by_the_type_that_it_was_made_for(annotation: Any) -> None:
    model: type[BaseModel] = create_model("Parameters", value=(annotation, ...), rest=(int, 3))
    sample = sample_parameters(model.model_json_schema())
    assert "rest" not in sample  # it has a default
    model.model_validate_json(orjson.dumps(sample))


def test_an_example_in_the_schema_is_taken() -> None:
    model = create_model("Parameters", text=(Annotated[str, Field(examples=["mine"])], ...))
    assert sample_parameters(model.model_json_schema()) == {"text": "mine"}


def service(**members: Any) -> Service:
    schema = create_model("Parameters", text=(str, ...)).model_json_schema()
    deployment = Deployment(
        id="d",
        name="n",
        target="m:p",
        created_at=datetime.now(UTC),
        fingerprint="f",
        pipeline_name="p",
        capture={},
        steps=[],
        input_schema=schema,
        output_schema={},
    )
    defaults: dict[str, Any] = {
        "url": "http://127.0.0.1:1",
        "deployment": deployment,
        "worker_processes": 1,
        "store": "memory",
        "needs_key": False,
    }
    return Service(**{**defaults, **members})


def test_each_curl_line_survives_the_shell() -> None:
    for _, line in curl_lines(service()):
        words = shlex.split(line)
        assert orjson.loads(words[words.index("-d") + 1]) == {"parameters": {"text": TEXT}}


def test_a_service_with_a_key_shows_where_it_goes_and_not_what_it_is() -> None:
    assert all(
        '-H "Authorization: Bearer ${ZENML_SERVING_AUTH_KEY%%,*}"' in line
        for _, line in curl_lines(service(needs_key=True))
    )


def test_the_banner_names_the_pipeline_the_deployment_and_the_processes() -> None:
    text = banner(service(worker_processes=2))
    assert "Serving p at http://127.0.0.1:1" in text
    assert "deployment d, 2 worker processes, jobs in memory" in text
