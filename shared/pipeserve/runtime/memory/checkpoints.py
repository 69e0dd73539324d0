"""The results of durable steps of jobs that live in this process."""

from __future__ import annotations

from collections.abc import Mapping

from pipeserve.runtime.memory.state import MemoryState


class MemoryCheckpoints:
    """``Checkpoints`` in this process."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def save(self, job_id: str, attempt: int, name: str, record: bytes) -> None:
        """Keep ``record`` under the step call's name until the job ends. Raises StaleAttemptError."""
        self._state.owned(job_id, attempt).checkpoints[name] = record

    async def load(self, job_id: str) -> Mapping[str, bytes]:
        """All records of a job, by name."""
        job = self._state.get(job_id)
        return {} if job is None else dict(job.checkpoints)
