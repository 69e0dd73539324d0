"""Finds the deployment that a worker serves and loads its code, or says in words why this process can't serve it."""

from __future__ import annotations

import asyncio
import time

from pipeserve.errors import StoreUnavailableError
from pipeserve.process_log import Log
from pipeserve.runtime.backoff import Backoff
from pipeserve.runtime.ports import DeploymentRegistry
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.deployment import Deployment
from pipeserve.sdk.snapshot import check_code, unknown_deployment
from pipeserve.sdk.target import load_target


async def find_deployment(
    registry: DeploymentRegistry, id_or_name: str, log: Log, *, patience: float = 0.0
) -> Deployment:
    """The deployment. Waits for a store that is away. Raises ConfigurationError if it holds no such deployment.

    ``patience``: seconds for which it may be missing. A store that was emptied gets it back from another process.
    """
    backoff = Backoff(0.1, 2.0)
    given_up = time.monotonic() + patience
    while True:
        try:
            deployment = await registry.get(id_or_name)
        except StoreUnavailableError as error:
            log.warning("waiting for the store", error=str(error))
            await asyncio.sleep(backoff.next())
            continue
        if deployment is not None:
            return deployment
        if time.monotonic() >= given_up:
            raise unknown_deployment(id_or_name)
        await asyncio.sleep(0.1)


def load_definition(deployment: Deployment) -> PipelineDefinition:
    """The deployment's pipeline, from this machine's code.

    Raises TargetError if the code is not here, and ConfigurationError if it is not the code that was deployed: results
    of one deployment must not depend on which machine has run the job.
    """
    definition = load_target(deployment.target).pipeline.definition
    check_code(deployment, definition)
    return definition
