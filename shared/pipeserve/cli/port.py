"""Whether the service's port is free, and if not, who has it: better said before anything is started."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pipeserve.errors import ConfigurationError

_LISTEN = "0A"
"""TCP_LISTEN, as /proc/net/tcp writes it."""


def free_port(host: str, port: int) -> int:
    """``port`` if ``host`` can listen there; for 0, one that is free. Raises ConfigurationError naming the owner."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        owner = owner_of(port)
        raise ConfigurationError(
            f"can't listen on {host}:{port}: {owner or reason}; choose another port with --port or ZENML_SERVICE_PORT"
        ) from None


def owner_of(port: int) -> str | None:
    """Who listens on ``port``, for people; None where that can't be told (not Linux, another user's process)."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not inodes:
        return None
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(os.readlink(descriptor) in inodes for descriptor in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                return f"process {process.name} has it ({b' '.join(words).decode(errors='replace')[:120]})"
        except OSError:  # gone meanwhile, or not ours to look into
            continue
    return None


def _listening_inodes(port: int) -> list[str]:
    found: list[str] = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.append(fields[9])
    return found
