"""Who sent a request, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

from pipeserve.errors import ForbiddenError
from pipeserve.key_file import KeyScope

CALLER = "caller"
"""The name in the request's state under which it is noted who sent it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a key, or of a token for one job."""

    name: str
    """The name of its key; a digest of a key that has none; ``token:`` and the job's id of a token; empty while the
    service needs no key."""
    scopes: frozenset[KeyScope] = frozenset(KeyScope)
    requests_per_minute: int | None = None
    runs_per_day: int | None = None
    grant: str | None = None
    """The one job that the caller may read, and do nothing else; None: it came with a key, or none is needed."""

    def may(self, scope: KeyScope) -> bool:
        """Whether this caller has ``scope``; an admin has them all."""
        return scope in self.scopes or KeyScope.ADMIN in self.scopes

    @property
    def sees(self) -> str | None:
        """Whose jobs this caller sees: those with this name; None: all."""
        return None if KeyScope.ADMIN in self.scopes or self.grant is not None else self.name

    @property
    def owns(self) -> str:
        """The name that this caller's jobs carry; empty where only admins are to see them."""
        return self.sees or ""


EVERYBODY = Caller("")
"""Whoever calls a service that needs no key."""


def caller_in(scope: Scope) -> Caller:
    """Who sent the request."""
    return scope["state"].get(CALLER, EVERYBODY)


def check_may(caller: Caller, scope: KeyScope, *, job_id: str | None = None) -> None:
    """Raise ForbiddenError unless the caller's key, or its token, opens this. ``job_id``: the job that is read."""
    if caller.grant is not None and (scope is not KeyScope.READ or caller.grant != job_id):
        raise ForbiddenError(f"This token is for reading job {caller.grant} only.", job_id=job_id)
    if not caller.may(scope):
        raise ForbiddenError(f"This key lacks the scope {scope.value}.")
