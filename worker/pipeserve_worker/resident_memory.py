"""How much memory this process has resident, without a library for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_STATM = Path("/proc/self/statm")
_PS_SECONDS = 2.0


def resident_bytes() -> int | None:
    """Bytes of this process that are in memory now, without those of its children; None: nobody here can tell.

    ``getrusage`` would not do: it knows the peak only, and what a process has given back would count for ever.
    """
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return _of_ps()


def _of_ps() -> int | None:
    try:
        told = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(os.getpid())],
            capture_output=True,
            check=True,
            timeout=_PS_SECONDS,
        )
        return int(told.stdout) * 1024  # POSIX leaves the unit open; macOS and the BSDs have KiB
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
