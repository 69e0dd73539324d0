"""The same two functions behind a bare FastAPI route: what one would write without this package."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks._pipelines import count_words, split_words


class Parameters(BaseModel):
    """The request's parameters."""

    text: str


class Invocation(BaseModel):
    """The request's body."""

    parameters: Parameters


app = FastAPI()


@app.post("/invoke")
def invoke(body: Invocation) -> dict[str, dict[str, dict[str, int]]]:
    return {"outputs": {"output": count_words(split_words(body.parameters.text))}}
