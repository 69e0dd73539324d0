"""Durable steps: their results are recorded with the job, so that another attempt at it goes on after them.

A record is bound to the job, to the step's code and to its inputs: after a change of any, the step runs again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import orjson

from pipeserve.errors import StaleAttemptError
from pipeserve.runtime.cache.key import CacheKey
from pipeserve.runtime.insist import insist
from pipeserve.runtime.ports import Checkpoints
from pipeserve.runtime.run import RunStopped
from pipeserve.runtime.step_spec import StepSpec
from pipeserve.runtime.values.codec import Codec, NotStorableError

_log = logging.getLogger(__name__)


class Missing:
    """There is no such record."""


MISSING: Final = Missing()


class JobCheckpoints:
    """The records of one attempt at one job."""

    def __init__(
        self, port: Checkpoints, job_id: str, attempt: int, codec: Codec, found: Mapping[str, bytes] | None = None
    ) -> None:
        self._port = port
        self._job_id = job_id
        self._attempt = attempt
        self._codec = codec
        self._found = dict(found or {})

    @classmethod
    async def load(cls, port: Checkpoints, job_id: str, attempt: int, codec: Codec) -> JobCheckpoints:
        """With what earlier attempts have recorded; waits for a store that is away."""
        found = await insist(lambda: port.load(job_id)) if attempt > 1 else None
        return cls(port, job_id, attempt, codec, found)

    def find(self, name: str, spec: StepSpec, inputs: CacheKey | None) -> Any:
        """The result that an earlier attempt recorded for this call; MISSING if none fits."""
        record = self._found.get(name)
        if record is None or inputs is None:
            return MISSING
        header, _, body = record.partition(b"\n")
        try:
            if orjson.loads(header)["inputs"] != inputs.digest:
                return MISSING
            return self._codec.decode(body, spec.returns)
        except (ValueError, KeyError, TypeError) as error:  # the type has changed, or an older version wrote it
            _log.warning("job %s: the checkpoint of step %r can't be read: %s", self._job_id, name, error)
            return MISSING

    def record(self, name: str, spec: StepSpec, inputs: CacheKey | None, value: Any) -> bytes | None:
        """What :meth:`save` records of a result. Raises NotStorableError, naming the step.

        None for a step whose inputs can't be compared: no other attempt could tell that it is the same call.
        """
        if inputs is None:
            return None
        try:
            body = self._codec.encode(value, spec.returns)
        except NotStorableError as error:
            raise NotStorableError(f"step {name!r} has checkpoint=True, but {error}") from None
        return orjson.dumps({"inputs": inputs.digest}) + b"\n" + body

    async def save(self, name: str, record: bytes) -> None:
        """Keep a :meth:`record`; returns once the store has it."""
        try:
            await insist(lambda: self._port.save(self._job_id, self._attempt, name, record))
        except StaleAttemptError:
            raise RunStopped from None  # another attempt owns the job: this one is being stopped
