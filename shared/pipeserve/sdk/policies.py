"""The options of ``@step`` that say how a service calls it, read and checked together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pipeserve.errors import DefinitionError
from pipeserve.sdk.batch import Batch
from pipeserve.sdk.cache import Cache, cache_policy
from pipeserve.sdk.definition import Mode
from pipeserve.sdk.retry import Retry

Executor = Literal["thread", "process"]
"""Where a step runs. ``thread`` stands for the service's own process, which for an async step is its event loop."""


@dataclass(frozen=True, slots=True)
class Policies:
    """What one ``@step(...)`` asks for."""

    cache: Cache | Literal[False] | None = None
    """False: never; None: as the pipeline says."""
    retry: Retry | None = None
    batch: Batch | None = None
    checkpoint: bool = False
    executor: Executor = "thread"

    @classmethod
    def of(cls, *, cache: object, retry: object, batch: object, checkpoint: object, executor: object) -> Policies:
        """The options as they were passed. Raises DefinitionError for one of a wrong type."""
        if retry is not None and not isinstance(retry, Retry):
            raise DefinitionError(f"@step: retry must be a Retry(...), not {retry!r}")
        if batch is not None and not isinstance(batch, Batch):
            raise DefinitionError(f"@step: batch must be a Batch(...), not {batch!r}")
        if not isinstance(checkpoint, bool):
            raise DefinitionError(f"@step: checkpoint must be True or False, not {checkpoint!r}")
        if executor not in ("thread", "process"):
            raise DefinitionError(f'@step: executor must be "thread" or "process", not {executor!r}')
        policy = None if cache is None else cache_policy(cache, "@step") or False
        return cls(policy, retry, batch, checkpoint, "process" if executor == "process" else "thread")

    def check(self, name: str, fn: Callable[..., Any], mode: Mode) -> None:
        """Raise DefinitionError for options that don't go with this function, or with each other."""
        if self.batch is not None:
            if mode.streams:
                raise DefinitionError(f"step {name!r}: a batched step returns a list of results; it can't yield")
            if self.executor == "process":
                raise DefinitionError(f'step {name!r}: batch and executor="process" don\'t go together')
        if self.executor == "process":
            place = getattr(fn, "__qualname__", "<lambda>")
            if "<" in place:
                raise DefinitionError(
                    f'step {name!r}: executor="process" needs a function at the top level of a module, because '
                    f"another process imports it; {place} is inside another function"
                )
