"""What the service serves at this moment, as its ``/info`` tells it. A redeployment may change it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

LONGEST_NAME = 56
"""Characters of a tool's name without its ending: MCP allows 128, but model providers take 64."""


@dataclass(frozen=True, slots=True)
class DeployedPipeline:
    """One deployment's pipeline, in the words of its service."""

    name: str
    description: str
    deployment_id: str
    total_steps: int | None
    """None: a dynamic pipeline, whose steps are known only when they are called."""
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]

    @property
    def tool_name(self) -> str:
        """The pipeline's name in the letters that a tool's name may have."""
        return re.sub(r"[^A-Za-z0-9_-]", "_", self.name)[:LONGEST_NAME] or "pipeline"

    @classmethod
    def of(cls, info: dict[str, Any]) -> DeployedPipeline:
        """Read the answer of ``/info``. Raises KeyError for one that a pipeserve service does not give."""
        pipeline = info["pipeline"]
        return cls(
            name=pipeline["name"],
            description=pipeline.get("description") or "",
            deployment_id=info["deployment"]["id"],
            total_steps=None if pipeline.get("dynamic") else len(pipeline["steps"]),
            input_schema=pipeline.get("input_schema") or {},
            output_schema=pipeline.get("output_schema") or {},
        )
