"""The visualizations of jobs that live in this process."""

from __future__ import annotations

from collections.abc import Sequence

from pipeserve.runtime.memory.state import MemoryState
from pipeserve.runtime.ports import Attachment


class MemoryAttachments:
    """``Attachments`` in this process."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def add(self, job_id: str, attempt: int, attachments: Sequence[Attachment], *, ending: bool = False) -> None:
        """Keep them with a job that this attempt owns; one with an index that is there replaces it.

        A job that keeps no events keeps none of them. Raises StaleAttemptError.
        """
        record = self._state.owned(job_id, attempt)
        if record.new.keep_events:
            record.attachments |= {attachment.index: attachment for attachment in attachments}

    async def list(self, job_id: str) -> list[Attachment]:
        """All of a job, by index, with their data."""
        record = self._state.get(job_id)
        return [] if record is None else [record.attachments[index] for index in sorted(record.attachments)]

    async def get(self, job_id: str, index: int) -> Attachment | None:
        """One of a job."""
        record = self._state.get(job_id)
        return None if record is None else record.attachments.get(index)
