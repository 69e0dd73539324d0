"""Pipelines that are served to be fuzzed: parameters of every kind, and an echo."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pipeserve.sdk.context import emit, progress
from pipeserve.sdk.pipeline import pipeline
from pipeserve.sdk.step import step


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid")

    city: str = Field(min_length=1, max_length=20)
    height: Annotated[float, Field(ge=-500, le=9000)] = 0.0


@step
def count(text: str, times: Annotated[int, Field(ge=1, le=20)]) -> Annotated[int, "letters"]:
    print("counting")
    for done in range(times):
        progress(done / times)
    return len(text) * times


@step
def describe(place: Place, colour: Colour, tags: list[str] | None, note: str = "") -> Annotated[str, "words"]:
    emit(colour)
    return f"{place.city} {colour} {len(tags or [])}{note}"


@pipeline
def survey(
    text: Annotated[str, Field(max_length=200)],
    place: Place,
    times: Annotated[int, Field(ge=1, le=20)] = 1,
    colour: Colour = Colour.RED,
    tags: list[str] | None = None,
    exact: bool = False,
):
    """Parameters of many types, logs, progress and outputs."""
    return {"letters": count(text, times), "words": describe(place, colour, tags)}


@step
def back(value: JsonValue) -> Annotated[JsonValue, "value"]:
    return value


@pipeline
def echo(value: JsonValue):
    """Gives back what it got."""
    return back(value)


@step
def talk(lines: int) -> int:
    for line in range(lines):
        emit(line)
        if line % 3 == 0:
            print(f"line {line}")
    return lines


@pipeline
def talkative(lines: int = 20):
    """Says something many times."""
    return talk(lines)
