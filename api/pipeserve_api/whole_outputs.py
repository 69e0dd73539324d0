"""The answer to a synchronous call that a worker has run: its large outputs, which its record only refers to, in full.

Where a call runs must not change what its caller gets.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json

from pipeserve.jobs import Job
from pipeserve.runtime.values.artifact_ref import ArtifactRef
from pipeserve.runtime.values.artifacts import ArtifactStore
from pipeserve.runtime.values.encoding import NotJsonError, to_json
from pipeserve.runtime.values.materializers import Materializers

_log = logging.getLogger(__name__)


async def with_whole_outputs(job: Job, artifacts: ArtifactStore, materializers: Materializers) -> Job:
    """``job`` with the values in the place of references. One that can't be read stays a reference."""
    outputs = (job.outputs if job.result is None else job.result) or {}
    refs = {name: ref for name, value in outputs.items() if (ref := ArtifactRef.read(value)) and not ref.missing}
    if not refs:
        return job
    values: dict[str, Any] = {}
    for name, ref in refs.items():
        try:
            async with artifacts.open(job.job_id, ref, job.completed_at or datetime.now(UTC)) as file:
                data = b"".join([chunk async for chunk in file.chunks()])
            values[name] = await asyncio.to_thread(_value, ref, data, materializers)
        except Exception as error:  # the author's materializer may raise anything; the reference leads to the bytes
            _log.warning("job %s: its output %r is answered as a reference: %s", job.job_id, name, error)
    return job.model_copy(update={"result": outputs | values})


def _value(ref: ArtifactRef, data: bytes, materializers: Materializers) -> Any:
    """The JSON value of what an artifact holds."""
    if ref.media_type != "application/json":
        materializer = materializers.of_file(ref.media_type, ref.name)
        if materializer is None:
            raise NotJsonError(f"(stored as {ref.media_type})")
        data = to_json(materializer.load(data), materializers)
    return from_json(data)
