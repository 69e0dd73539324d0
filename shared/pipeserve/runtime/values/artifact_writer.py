"""Writes the artifacts of finished runs before their records refer to them.

A queued job waits for it: a result that can't be kept is no result. A synchronous run has answered its caller, so it
is tried for a while in the background, and a record that must do without says so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from pipeserve.runtime.backoff import Backoff
from pipeserve.runtime.values.artifact_ref import Artifact
from pipeserve.runtime.values.artifacts import ArtifactError, ArtifactStore
from pipeserve.runtime.values.outputs import KeptOutputs

_log = logging.getLogger(__name__)
_FIRST_BACKOFF = 0.1
_LAST_BACKOFF = 5.0
_TRY_SECONDS = 30.0  # of one try, and one more for each …
_TRY_BYTES = 1_048_576  # … so many bytes


class ArtifactWriter:
    """Writes to ``store``; what waits in the background holds at most about ``max_bytes``. Use it on one loop."""

    def __init__(self, store: ArtifactStore, max_bytes: int, *, patience: float = 10.0) -> None:
        """``patience``: seconds for which the artifacts of a synchronous run are tried."""
        self._store = store
        self._patience = patience
        self._max_bytes = max_bytes
        self._bytes = 0
        self._reported = float("-inf")

    async def write(
        self, artifacts: Sequence[Artifact], *, seconds: float, stop: asyncio.Event, at: float | None = None
    ) -> bool:
        """Write them all, trying again for up to ``seconds``; at least once. False: ``stop`` was set first.

        ``at``: when the job finished (Unix time; None: it does so next). Raises ArtifactError.
        """
        writing = asyncio.create_task(self._write(artifacts, seconds, at))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([writing, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            writing.cancel()
            await asyncio.gather(writing, stopping, return_exceptions=True)
        if writing.cancelled():
            return False
        writing.result()
        return True

    async def remove(self, artifacts: Sequence[Artifact]) -> None:
        """Remove what was written just now for a job that has no outputs after all."""
        for artifact in artifacts:
            try:
                await self._store.delete(artifact)
            except ArtifactError as error:  # it goes with its day
                _log.warning("an artifact of job %s was left over: %s", artifact.job_id, error)

    async def settle(self, kept: KeptOutputs, at: float) -> None:
        """Write the artifacts of a synchronous run that ended at Unix time ``at``; what can't be, is missing then."""
        size = sum(len(artifact.data) for artifact in kept.artifacts)
        if self._bytes + size > self._max_bytes and self._bytes:
            self._report(f"{self._bytes} bytes wait to be written already")
            kept.missing()
            return
        self._bytes += size
        try:
            await self.write(kept.artifacts, seconds=self._patience, stop=asyncio.Event(), at=at)
            kept.written()
        except ArtifactError as error:
            self._report(str(error))
            kept.missing()
        except asyncio.CancelledError:  # the process ends
            kept.missing()
            raise
        finally:
            self._bytes -= size

    async def _write(self, artifacts: Sequence[Artifact], seconds: float, at: float | None) -> None:
        deadline = time.monotonic() + seconds
        backoff = Backoff(_FIRST_BACKOFF, _LAST_BACKOFF)
        left = list(artifacts)
        while left:
            try:
                await self._try(left[0], at)
            except ArtifactError:
                delay = backoff.next()
                if time.monotonic() + delay >= deadline:
                    raise
                await asyncio.sleep(delay)
            else:
                backoff.reset()
                del left[0]

    async def _try(self, artifact: Artifact, at: float | None) -> None:
        seconds = _TRY_SECONDS + len(artifact.data) / _TRY_BYTES
        try:
            async with asyncio.timeout(seconds):
                await self._store.write(artifact, at=at)
        except TimeoutError:
            raise ArtifactError(f"it did not take {len(artifact.data)} bytes within {seconds:.0f} s") from None

    def _report(self, words: str) -> None:
        now = time.monotonic()
        if now - self._reported >= 15:  # once in a while: every call may meet the same trouble
            self._reported = now
            _log.warning("an artifact of a synchronous run could not be written, and is missing: %s", words)
