"""Mistakes that the decorators must not hide: pyright reports each line marked ``# error``. Nothing here is run."""

from __future__ import annotations

from pipeserve import Capture, pipeline, step


@step
def double(x: int) -> int:
    return 2 * x


@step
async def later(x: int) -> int:
    return x


@pipeline
def served(x: int) -> int:
    return double(x)


def mistakes() -> None:
    double("three")  # error
    double()  # error
    double(1, factor=2)  # error
    text: str = double(1)  # error
    served("one")  # error
    double(later(1))  # error
    Capture(unknown=True)  # error
    Capture(logs="yes")  # error
    print(text)
