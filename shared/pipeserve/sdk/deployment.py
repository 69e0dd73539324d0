"""A deployment: the immutable snapshot that makes a pipeline ready to serve."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict


class Deployment(BaseModel):
    """One pipeline at one state of its code. A changed code fingerprint is a new deployment."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    """A UUID."""
    name: str
    target: str
    """``package.module:pipeline`` or ``/absolute/path.py:pipeline``."""
    created_at: datetime
    fingerprint: str
    """SHA-256 in hex over the source of the pipeline and of its steps."""
    pipeline_name: str
    description: str | None = None
    dynamic: bool = False
    capture: dict[str, bool]
    steps: list[dict[str, Any]]
    """Each ``{name, inputs, upstream, outputs, …}``, in order."""
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    source: dict[str, str] | None = None
    """Source by ``pipeline`` and step name; None when ``Capture(code=False)``."""
