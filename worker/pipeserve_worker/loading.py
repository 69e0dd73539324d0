"""Loads a deployment's code, or says in words why this process can't serve it."""

from __future__ import annotations

from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.deployment import Deployment
from pipeserve.sdk.snapshot import check_code
from pipeserve.sdk.target import load_target


def load_definition(deployment: Deployment) -> PipelineDefinition:
    """The deployment's pipeline, from this machine's code.

    Raises TargetError if the code is not here, and ConfigurationError if it is not the code that was deployed: results
    of one deployment must not depend on which machine has run the job.
    """
    definition = load_target(deployment.target).pipeline.definition
    check_code(deployment, definition)
    return definition
