"""The visualizations of one deployment's jobs on Redis or Valkey: a hash per job, which expires with its record."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeserve.errors import StaleAttemptError
from pipeserve.runtime.ports import Attachment
from pipeserve.store.scripts.attach import attach, read_attachment
from pipeserve.store.scripts.prelude import Scope

logger = logging.getLogger(__name__)


class RedisAttachments:
    """``Attachments`` on Redis."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    async def add(self, job_id: str, attempt: int, attachments: Sequence[Attachment], *, ending: bool = False) -> None:
        """Keep them with a job that this attempt owns; one with an index that is there replaces it.

        A job that keeps no events keeps none of them. Raises StaleAttemptError, StoreUnavailableError.
        """
        if not await attach(self._scope, job_id, attempt, attachments, ending=ending):
            raise StaleAttemptError.of(job_id, attempt)

    async def list(self, job_id: str) -> list[Attachment]:
        """All of a job, by index, with their data. Raises StoreUnavailableError."""
        stored: dict[bytes, bytes] = await self._scope.connection.call("HGETALL", self._scope.keys.attachments(job_id))
        found = [self._read(job_id, index, value) for index, value in stored.items()]
        return sorted((attachment for attachment in found if attachment is not None), key=lambda it: it.index)

    async def get(self, job_id: str, index: int) -> Attachment | None:
        """One of a job. Raises StoreUnavailableError."""
        key = self._scope.keys.attachments(job_id)
        value: bytes | None = await self._scope.connection.call("HGET", key, index)
        return None if value is None else self._read(job_id, b"%d" % index, value)

    def _read(self, job_id: str, index: bytes, value: bytes) -> Attachment | None:
        """None where an older version, or another program, wrote what can't be read: the others are shown."""
        try:
            return read_attachment(int(index), value)
        except ValueError:
            logger.warning("attachment %s of job %s can't be read", index.decode(errors="replace"), job_id)
            return None
