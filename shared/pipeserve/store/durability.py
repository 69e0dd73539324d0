"""When a write is safe: on the disk of the server, and in the memory of a replica where there is one.

``PIPESERVE_DURABILITY=strict`` answers for a job only then. What that takes depends on the server:

* ``WAITAOF 1 0`` where it has an append-only file (Redis 7.2 or Valkey): the file is on disk up to this write. With
  ``appendfsync everysec`` that lasts up to a second; with ``always`` about as long as the disk takes.
* ``WAIT 1`` where a replica is connected: the replica has it, so a failover does not lose it. Behind sentinels one must
  be connected: what a primary alone has on its disk is lost when the sentinels replace it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WAIT_MS = 2_000
"""For each of both waits. A file that is written each second is on disk after 1.1 s at worst, unless the disk is slow;
both waits together stay below the connection's read timeout."""
PLAN_SECONDS = 5.0
"""For so long a look at the server's set-up holds."""

_WAITAOF_SINCE = (7, 2)

Command = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What a server can confirm."""

    disk: bool
    replica: bool

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Guarantee:
        """Of a server that says this in ``INFO``."""
        return cls(
            disk=bool(int(info.get("aof_enabled", 0))) and has_waitaof(info),
            replica=int(info.get("connected_slaves", 0)) > 0,
        )

    @property
    def waits(self) -> Sequence[Command]:
        """The commands to send after a write, on the same connection."""
        replica: list[Command] = [("WAIT", 1, WAIT_MS)] if self.replica else []
        disk: list[Command] = [("WAITAOF", 1, 0, WAIT_MS)] if self.disk else []
        return replica + disk


def has_waitaof(info: Mapping[str, Any]) -> bool:
    """Whether a server that says this in ``INFO`` can tell when its file is on disk."""
    version = tuple(map(int, re.findall(r"\d+", str(info.get("redis_version", "0")))[:2]))
    return version >= _WAITAOF_SINCE  # Valkey says 7.2 here


def confirmed(replies: Sequence[Any]) -> bool:
    """Whether the replies to :attr:`Guarantee.waits` say that the write is safe."""
    return bool(replies) and all(_count(reply) >= 1 for reply in replies)


def _count(reply: Any) -> int:
    if isinstance(reply, Exception):  # such as: the append-only file has been turned off
        return 0
    return int(reply) if isinstance(reply, int) else int(reply[0])  # WAITAOF: this server, replicas


def unreplicated(info: Mapping[str, Any]) -> str | None:
    """Why a server behind sentinels can't keep strict durability just now; None: it can."""
    if Guarantee.of(info).replica:
        return None
    return (
        "PIPESERVE_DURABILITY=strict: no replica is connected to the primary, so a failover would lose what it takes. "
        "Jobs are refused until one is."
    )


def unkept(info: Mapping[str, Any]) -> str | None:
    """Why strict durability can't be kept by a server that says this in ``INFO``; None: it can."""
    guarantee = Guarantee.of(info)
    if guarantee.disk or guarantee.replica:
        return None
    missing = "it has no append-only file" if has_waitaof(info) else "it is older than 7.2 and can't tell"
    return (
        f"PIPESERVE_DURABILITY=strict can't be kept: {missing}, and no replica is connected. Jobs are refused. "
        "Set appendonly yes on Redis 7.2 or newer or Valkey, or connect a replica."
    )
