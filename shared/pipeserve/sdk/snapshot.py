"""Takes the snapshot of a pipeline that becomes a deployment, and holds code against it later."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from pipeserve.errors import ConfigurationError
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.deployment import Deployment
from pipeserve.sdk.fingerprint import source_of
from pipeserve.sdk.pipeline import Pipeline

_HEAD = 12  # characters of a fingerprint that a message shows


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


def check_code(deployment: Deployment, definition: PipelineDefinition) -> None:
    """Raise ConfigurationError unless this is the code that was deployed.

    What a deployment answers must not depend on which process, on which machine, has run it.
    """
    if definition.fingerprint != deployment.fingerprint:
        raise ConfigurationError(
            "A process refuses a deployment whose code it does not have: "
            f"deployment {deployment.name!r} ({deployment.id}) was made from code {deployment.fingerprint[:_HEAD]}, "
            f"and {deployment.target} is {definition.fingerprint[:_HEAD]} here. "
            "Bring back that code, or serve this code as a new deployment:\n"
            "    export ZENML_PIPELINE_DEPLOYMENT_ID=$(pipeserve deploy "
            f"{deployment.target} --name {deployment.name})"
        )


def unknown_deployment(id_or_name: str) -> ConfigurationError:
    """The error for an id or name that a store has no deployment of."""
    return ConfigurationError(
        f"ZENML_PIPELINE_DEPLOYMENT_ID: this store has no deployment {id_or_name!r}. Make one and pass its id:\n"
        "    export ZENML_PIPELINE_DEPLOYMENT_ID=$(pipeserve deploy package.module:pipeline)"
    )
