"""The deployments of a store, shared by all that connect to it."""

from __future__ import annotations

import hashlib

from pipeserve.sdk.deployment import Deployment
from pipeserve.store import keys
from pipeserve.store.connection import Connection, Script

_SAVE = Script("""
local identities, records, names = KEYS[1]..'identities', KEYS[1]..'records', KEYS[1]..'names'
local id = redis.call('HGET', identities, ARGV[1])
local record = id and redis.call('HGET', records, id)
if not record then
  id, record = ARGV[2], ARGV[4]
  redis.call('HSET', records, id, record)
  redis.call('HSET', identities, ARGV[1], id)
end
redis.call('HSET', names, ARGV[3], id)
return record
""")
RESTORE = Script("""
redis.call('HSETNX', KEYS[1]..'records', ARGV[2], ARGV[4])
redis.call('HSETNX', KEYS[1]..'identities', ARGV[1], ARGV[2])
redis.call('HSETNX', KEYS[1]..'names', ARGV[3], ARGV[2])
return 1
""")
"""Puts a deployment back under its id into a store that has lost it; see :func:`arguments_of`."""
_PREFIX = keys.DEPLOYMENT_RECORDS.removesuffix("records")


def arguments_of(deployment: Deployment) -> tuple[str, ...]:
    """Key and arguments of a script that keeps ``deployment``."""
    parts = "\0".join((deployment.name, deployment.target, deployment.fingerprint))
    identity = hashlib.sha256(parts.encode()).hexdigest()
    return (_PREFIX, identity, deployment.id, deployment.name, deployment.model_dump_json())


class RedisDeployments:
    """``DeploymentRegistry`` on Redis."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def save(self, deployment: Deployment) -> Deployment:
        """Keep it, unless one of the same name, target and fingerprint is there: then that one is returned.

        Either way it is the newest of its name from now on.
        """
        record: bytes = await self._connection.run(_SAVE, *arguments_of(deployment))
        return Deployment.model_validate_json(record)

    async def get(self, id_or_name: str) -> Deployment | None:
        """By UUID, or the newest of a name."""
        record = await self._connection.call("HGET", keys.DEPLOYMENT_RECORDS, id_or_name)
        if record is None:
            deployment_id = await self._connection.call("HGET", keys.DEPLOYMENT_NAMES, id_or_name)
            if deployment_id is not None:
                record = await self._connection.call("HGET", keys.DEPLOYMENT_RECORDS, deployment_id)
        return None if record is None else Deployment.model_validate_json(record)

    async def list(self) -> list[Deployment]:
        """All, newest first."""
        records = await self._connection.call("HVALS", keys.DEPLOYMENT_RECORDS)
        deployments = [Deployment.model_validate_json(record) for record in records]
        return sorted(deployments, key=lambda deployment: (deployment.created_at, deployment.id), reverse=True)
