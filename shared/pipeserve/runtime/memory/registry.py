"""Deployments that live in this process."""

from __future__ import annotations

from pipeserve.sdk.deployment import Deployment


class MemoryDeployments:
    """A ``DeploymentRegistry`` in this process."""

    def __init__(self) -> None:
        self._by_identity: dict[tuple[str, str, str], Deployment] = {}
        self._by_id: dict[str, Deployment] = {}
        self._by_name: dict[str, Deployment] = {}

    async def save(self, deployment: Deployment) -> Deployment:
        """Keep it, unless one of the same name, target and fingerprint is there: then that one is returned.

        Either way it is the newest of its name from now on.
        """
        identity = (deployment.name, deployment.target, deployment.fingerprint)
        kept = self._by_identity.setdefault(identity, deployment)
        self._by_id[kept.id] = self._by_name[kept.name] = kept
        return kept

    async def get(self, id_or_name: str) -> Deployment | None:
        """By UUID, or the newest of a name."""
        return self._by_id.get(id_or_name) or self._by_name.get(id_or_name)

    async def list(self) -> list[Deployment]:
        """All, newest first."""
        return sorted(self._by_id.values(), key=lambda deployment: (deployment.created_at, deployment.id), reverse=True)
