"""A pipeline with a result that is too large for a job's record."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from pipeserve import pipeline, step


@step
def square(size: int) -> Annotated[np.ndarray, "squares"]:
    return np.arange(size) ** 2


@pipeline
def squares(size: int):
    return square(size)
