"""Finding the deployment that a process is to serve, in a store that may be away just now."""

from __future__ import annotations

import asyncio
import logging
import time

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.backoff import Backoff
from pipeserve.runtime.ports import DeploymentRegistry
from pipeserve.sdk.deployment import Deployment
from pipeserve.sdk.snapshot import unknown_deployment

_log = logging.getLogger(__name__)


async def find_deployment(registry: DeploymentRegistry, id_or_name: str, *, patience: float = 0.0) -> Deployment:
    """The deployment of this id, or the newest of this name. Waits for a store that is away.

    ``patience``: seconds for which it may be missing. A store that was emptied gets it back from another process.
    Raises ConfigurationError if there is no such deployment, saying how to make one.
    """
    backoff = Backoff(0.1, 2.0)
    given_up = time.monotonic() + patience
    while True:
        try:
            deployment = await registry.get(id_or_name)
        except StoreUnavailableError as error:
            _log.warning("waiting for the store: %s", error)
            await asyncio.sleep(backoff.next())
            continue
        if deployment is not None:
            return deployment
        if time.monotonic() >= given_up:
            raise unknown_deployment(id_or_name)
        await asyncio.sleep(0.1)
