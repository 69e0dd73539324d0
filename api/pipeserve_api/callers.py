"""Who sent a request, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from starlette.types import Scope as AsgiScope

CALLER = "caller"
"""The name in the request's state under which it is noted who sent it."""


class Scope(StrEnum):
    """What a key opens."""

    INVOKE = "invoke"
    """Start runs."""
    READ = "read"
    """Read one's own jobs, and what is served."""
    CANCEL = "cancel"
    """Cancel one's own jobs."""
    ADMIN = "admin"
    """Everything, for the jobs of all callers."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a key. Two keys with one name are one caller: so a key is replaced and its jobs stay."""

    name: str
    """Empty while the service needs no key."""
    scopes: frozenset[Scope] = frozenset(Scope)
    requests_per_minute: int | None = None
    runs_per_day: int | None = None
    max_active_jobs: int | None = None

    def may(self, scope: Scope) -> bool:
        """Whether this caller has ``scope``; an admin has them all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def sees(self) -> str | None:
        """Whose jobs this caller sees: only those with this name; None: all."""
        return None if Scope.ADMIN in self.scopes else self.name


EVERYBODY = Caller("")
"""Whoever calls a service that needs no key."""


def caller_in(scope: AsgiScope) -> Caller:
    """Who sent the request."""
    return scope["state"].get(CALLER, EVERYBODY)
