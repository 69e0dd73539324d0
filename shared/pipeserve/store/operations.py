"""What an operator asks of the store: figures, and whether it is fit to keep jobs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from redis.exceptions import ResponseError

from pipeserve.runtime.ports import CacheGauges, ServiceFigures
from pipeserve.store.engine import masked
from pipeserve.store.scripts.figures import figures, tell_cache
from pipeserve.store.scripts.prelude import Scope

OLDEST_SERVER = (6, 2)


class RedisOperations:
    """``Operations`` on Redis."""

    def __init__(self, scope: Scope, *, embedded: bool) -> None:
        self._scope = scope
        self._embedded = embedded

    async def figures(self) -> ServiceFigures:
        """The whole service's figures. Raises StoreUnavailableError."""
        return await figures(self._scope)

    async def tell_cache(self, owner: str, gauges: CacheGauges) -> None:
        """How full the step cache of process ``owner`` is; forgotten after 30 seconds. Raises StoreUnavailableError."""
        await tell_cache(self._scope, owner, gauges)

    async def check(self) -> list[str]:
        """What makes this store unfit to keep jobs, in sentences. Raises StoreUnavailableError.

        What a managed server forbids to ask (CONFIG) is not judged.
        """
        info: dict[str, Any] = await self._scope.connection.call("INFO")
        findings: list[str] = []
        version = str(info.get("valkey_version") or info.get("redis_version", "0"))
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_SERVER:
            oldest = ".".join(map(str, OLDEST_SERVER))
            findings.append(f"The server's version is {version}; at least {oldest} is needed.")
        policy = info.get("maxmemory_policy") or await self._configured("maxmemory-policy")
        if policy not in (None, "noeviction"):
            findings.append(
                f"maxmemory-policy is {policy}: under memory pressure the server would throw jobs away. "
                "Set it to noeviction."
            )
        if not int(info.get("aof_enabled", 1)):
            findings.append("appendonly is off: accepted jobs would be lost when the server stops. Set appendonly yes.")
        elif info.get("aof_last_write_status", "ok") != "ok":
            findings.append("The server can't write its append-only file; see its log and its disk.")
        if info.get("role", "master") not in ("master", "primary"):
            findings.append("The server is a read-only replica; give the URL of the primary.")
        return findings

    def describe(self) -> Mapping[str, object]:
        """The store's kind and address, without secrets."""
        return {"kind": "embedded" if self._embedded else "redis", "url": masked(self._scope.connection.url)}

    async def _configured(self, option: str) -> str | None:
        try:
            reply: dict[str, str] = await self._scope.connection.call("CONFIG GET", option)
        except ResponseError:  # forbidden: managed servers, ACLs
            return None
        return reply.get(option)
