"""Who sent a request, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope as AsgiScope

from pipeserve.errors import ForbiddenError
from pipeserve.key_file import KeyScope as Scope

__all__ = ["EVERYBODY", "Caller", "Scope", "caller_in", "check_may"]

CALLER = "caller"
"""The name in the request's state under which it is noted who sent it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a key, or of a token for one job."""

    name: str
    """The name of its key; a digest of a key that has none; empty while the service needs no key."""
    scopes: frozenset[Scope] = frozenset(Scope)
    requests_per_minute: int | None = None
    runs_per_day: int | None = None
    grant: str | None = None
    """The one job that the caller may read, and do nothing else; None: it came with a key, or none is needed."""

    def may(self, scope: Scope) -> bool:
        """Whether this caller has ``scope``; an admin has them all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def sees(self) -> str | None:
        """Whose jobs this caller sees: those with this name; None: all."""
        return None if Scope.ADMIN in self.scopes or self.grant is not None else self.name

    @property
    def owns(self) -> str:
        """The name that this caller's jobs carry; empty where only admins are to see them."""
        return self.sees or ""


EVERYBODY = Caller("")
"""Whoever calls a service that needs no key."""


def caller_in(scope: AsgiScope) -> Caller:
    """Who sent the request."""
    return scope["state"].get(CALLER, EVERYBODY)


def check_may(caller: Caller, scope: Scope) -> None:
    """Raise ForbiddenError unless the caller's key opens this."""
    if not caller.may(scope):
        raise ForbiddenError(f"This key lacks the scope {scope.value}.")
