"""``Cache``: when a step's result may be used again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

from pipeserve.errors import DefinitionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Results of a step are kept by its code and its arguments, and equal calls at the same time compute once.

    - ``ttl``: seconds for which a result is used; None: ``ZENML_RT_CACHE_TTL_SECONDS``.
    - ``key``: called with the step's arguments by name, gives what calls must have in common to share a result; None:
      all arguments.
    - ``copy``: give each caller a deep copy. Otherwise all share one value by reference and must not change it.
    - ``scope``: ``process`` keeps results in the process that computed them; ``shared`` in the store too, for every
      process of the deployment, and over restarts. A shared result must have a JSON form or a materializer.
    """

    ttl: float | None = None
    key: Callable[..., object] | None = None
    copy: bool = False
    scope: Literal["process", "shared"] = "process"

    def __post_init__(self) -> None:
        ttl, key, scope = cast(object, self.ttl), cast(object, self.key), cast(object, self.scope)
        if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not ttl > 0):
            raise DefinitionError(f"Cache(ttl=…) must be more than 0 seconds, or None, not {ttl!r}")
        if key is not None and not callable(key):
            raise DefinitionError(f"Cache(key=…) must be a function of the step's arguments, not {key!r}")
        if not isinstance(cast(object, self.copy), bool):
            raise DefinitionError(f"Cache(copy=…) must be True or False, not {self.copy!r}")
        if scope not in ("process", "shared"):
            raise DefinitionError(f'Cache(scope=…) must be "process" or "shared", not {scope!r}')


def cache_policy(option: object, where: str) -> Cache | None:
    """The policy that a ``cache=`` option means: True is ``Cache()``, False none. Raises DefinitionError."""
    if isinstance(option, Cache):
        return option
    if isinstance(option, bool):
        return Cache() if option else None
    raise DefinitionError(f"{where}: cache must be True, False or a Cache(...), not {option!r}")
