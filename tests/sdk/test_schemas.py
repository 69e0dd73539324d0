"""The schemas that a deployment shows: complete in themselves, and in the author's words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from pipeserve import pipeline, step


@dataclass
class Place:
    name: str


@dataclass
class Journey:
    start: Place
    end: Place


@step
def plan(start: str, end: Annotated[str, Field(description="Where to")] = "home") -> Journey:
    return Journey(Place(start), Place(end))


@step
def first(journey: Journey) -> Place:
    return journey.start


@step
def opaque(journey: Journey) -> re.Match[str]:
    raise NotImplementedError


@pipeline
def travel(start: Annotated[str, Field(description="Where from", examples=["Oslo"])]) -> dict[str, Any]:
    journey = plan(start)
    return {"journey": journey, "start": first(journey), "match": opaque(journey)}


def test_types_that_outputs_share_stand_once_where_references_look() -> None:
    schema = travel.definition.output_schema()
    assert set(schema["$defs"]) == {"Journey", "Place"}
    assert schema["properties"]["journey"] == {"$ref": "#/$defs/Journey"}
    assert schema["properties"]["start"] == {"$ref": "#/$defs/Place"}
    assert "$defs" not in str(schema["properties"]).replace("#/$defs/", "")


def test_an_output_of_a_type_without_schema_may_be_anything() -> None:
    assert travel.definition.output_schema()["properties"]["match"] == {}


def test_descriptions_and_examples_of_the_author_are_kept() -> None:
    properties = travel.definition.input_schema()["properties"]
    assert (properties["start"]["description"], properties["start"]["examples"]) == ("Where from", ["Oslo"])
