"""What a drill tells the service of itself: processes killed under load, and what became of the jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("not a number")
    return value


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


# JSON's own types only: a report is made by a program, and what has another type there has another meaning.
Count = Annotated[int, Field(ge=0, le=2**53), BeforeValidator(_number)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]
Moment = Annotated[datetime, BeforeValidator(_text)]
Name = Annotated[str, Field(min_length=1, max_length=50)]
Text = Annotated[str, Field(max_length=200)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DrillSpread(_Part):
    """Percentiles of so many observations, in seconds; null: there were none."""

    count: Count
    p50: Seconds | None = None
    p95: Seconds | None = None
    max: Seconds | None = None


class DrillReport(_Part):
    """The figures of one drill."""

    finished_at: Moment
    seconds: Seconds = Field(description="How long processes were killed")
    jobs: Count = Field(description="Jobs that were accepted meanwhile")
    kills: dict[Name, Count] = Field(max_length=10, description="Processes killed, by what they were")
    lost: Count = Field(description="Accepted jobs that are gone, or never ended")
    doubled: Count = Field(description="Jobs, ends or attempts that were there twice")
    violations: Count = Field(description="Broken promises in all, lost and doubled ones included")
    statuses: dict[Name, Count] = Field(default_factory=dict[str, int], max_length=10, description="Jobs by their end")
    worker_lost: Count = Field(0, description="Jobs that failed because all their attempts were killed")
    recovery: DrillSpread = Field(description="From the kill of a worker process to its job's next start")
    cancel: DrillSpread = Field(description="From a request to cancel a running job to its end")
    versions: dict[Name, Text] = Field(default_factory=dict[str, str], max_length=10)
    machine: dict[Name, Text] = Field(default_factory=dict[str, str], max_length=10)
    seed: Count | None = None
