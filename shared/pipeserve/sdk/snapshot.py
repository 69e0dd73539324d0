"""Takes the snapshot of a pipeline that becomes a deployment."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from pipeserve.sdk.deployment import Deployment
from pipeserve.sdk.fingerprint import source_of
from pipeserve.sdk.pipeline import Pipeline


def snapshot(pipeline: Pipeline[..., Any], target: str, name: str | None = None) -> Deployment:
    """A deployment of ``pipeline`` as its code is now, under a fresh UUID. ``name`` defaults to the pipeline's."""
    definition = pipeline.definition
    source = None
    if definition.capture.code:
        functions = {"pipeline": definition.fn, **{step.name: step.fn for step in definition.steps}}
        source = {key: text for key, function in functions.items() if (text := source_of(function)) is not None}
    return Deployment(
        id=str(uuid.uuid4()),
        name=name or definition.name,
        target=target,
        created_at=datetime.now(UTC),
        fingerprint=definition.fingerprint,
        pipeline_name=definition.name,
        description=definition.doc if definition.capture.code else None,
        dynamic=definition.dynamic,
        capture=definition.capture.as_dict(),
        steps=definition.describe_steps(),
        input_schema=definition.input_schema(),
        output_schema=definition.output_schema(),
        source=source,
    )
