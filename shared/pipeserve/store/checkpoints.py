"""The results of durable steps on Redis or Valkey: a hash per live job, which goes when the job ends."""

from __future__ import annotations

from collections.abc import Mapping

from pipeserve.errors import StaleAttemptError
from pipeserve.store.scripts.checkpoint import checkpoint
from pipeserve.store.scripts.prelude import Scope


class RedisCheckpoints:
    """``Checkpoints`` on Redis."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    async def save(self, job_id: str, attempt: int, name: str, record: bytes) -> None:
        """Keep ``record`` under the step call's name until the job ends.

        Raises StaleAttemptError, StoreUnavailableError.
        """
        if not await checkpoint(self._scope, job_id, attempt, name, record):
            raise StaleAttemptError.of(job_id, attempt)

    async def load(self, job_id: str) -> Mapping[str, bytes]:
        """All records of a job, by name. Raises StoreUnavailableError."""
        stored: dict[bytes, bytes] = await self._scope.connection.call("HGETALL", self._scope.keys.checkpoints(job_id))
        return {name.decode(): record for name, record in stored.items()}
