"""Steps in processes of their own. They stand in a module by themselves because children import it."""

from __future__ import annotations

from typing import Any

from tests.capture.masked import MADE, tell

from pipeserve import Secret, pipeline, step


@step(executor="process")
def make_there(token: str) -> Secret[str]:
    tell(token)
    tell(MADE)
    return MADE


@pipeline
def careful_elsewhere(token: Secret[str]) -> Any:
    return make_there(token)


@step(executor="process")
def flood(lines: int) -> int:
    for _ in range(lines):
        print("x" * 999)
    return lines


@pipeline
def flooding(lines: int) -> int:
    return flood(lines)
