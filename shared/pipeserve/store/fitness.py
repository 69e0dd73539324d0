"""Whether a server is fit to keep jobs, in sentences for whoever runs it.

A fault breaks a promise, so the service says it is not ready. A warning tells of what may become one.
"""

from __future__ import annotations

import re
from typing import Any

from redis.exceptions import ResponseError

from pipeserve.store.connection import Connection
from pipeserve.store.durability import unkept, unreplicated

OLDEST_SERVER = (6, 2)
MEMORY_WARNING = 0.8
"""The part of ``maxmemory`` in use from which to warn."""


async def faults(connection: Connection) -> list[str]:
    """What makes the server unfit. Raises StoreUnavailableError.

    What a managed server forbids to ask (CONFIG) is not judged.
    """
    info: dict[str, Any] = await connection.call("INFO")
    findings: list[str] = []
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        findings.append(f"The server's version is {version}; at least {oldest} is needed.")
    policy = info.get("maxmemory_policy") or await _configured(connection, "maxmemory-policy")
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
    if connection.strict:
        if (why := unkept(info)) is not None:
            findings.append(why)
        elif await _syncs_never(connection, info):
            findings.append(
                "PIPESERVE_DURABILITY=strict can't be kept: appendfsync is no, so the server never says when its file "
                "is on disk. Jobs are refused. Set appendfsync to everysec or always."
            )
    return findings


async def warnings(connection: Connection) -> list[str]:
    """What may make the server unfit one day. Raises StoreUnavailableError."""
    info: dict[str, Any] = await connection.call("INFO")
    told: list[str] = []
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if limit and used > MEMORY_WARNING * limit:
        told.append(
            f"The server uses {used / limit:.0%} of its maxmemory. Once it is full, new jobs are refused (503) "
            "and running ones end. Raise maxmemory, or lower PIPESERVE_RESULT_TTL."
        )
    if connection.strict and connection.behind_sentinels and (why := unreplicated(info)) is not None:
        told.append(why)
    if not connection.strict and await _syncs_never(connection, info):
        told.append(
            "appendfsync is no: if the server's host is lost, more than the last second of accepted jobs is. "
            "Set it to everysec."
        )
    return told


async def _syncs_never(connection: Connection, info: dict[str, Any]) -> bool:
    return bool(int(info.get("aof_enabled", 0))) and await _configured(connection, "appendfsync") == "no"


async def _configured(connection: Connection, option: str) -> str | None:
    try:
        reply: dict[str, str] = await connection.call("CONFIG GET", option)
    except ResponseError:  # forbidden: managed servers, ACLs
        return None
    return reply.get(option)
