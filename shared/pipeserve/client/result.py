"""What a completed job gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """The outputs of one completed job, by name."""

    job_id: str
    outputs: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    """Pipeline, deployment, run name and steps; of a synchronous call also ``parameters_applied`` and ``cache``."""
    execution_time: float | None = None
    """Seconds for which the pipeline ran."""
