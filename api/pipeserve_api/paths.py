"""What a request's path says before it is routed."""

from __future__ import annotations

from starlette.types import Scope


def path_parts(scope: Scope) -> list[str]:
    """The path below the service's root, cut at its slashes; at least one part."""
    return scope["path"].removeprefix(scope.get("root_path", "")).split("/")[1:] or [""]


def is_probe(scope: Scope) -> bool:
    """Whether it asks for ``/health`` or below: orchestrators do, who have no key and no limit."""
    return scope["type"] == "http" and path_parts(scope)[0] == "health"
