"""Ties a child process to its parent, so that a killed supervisor leaves no workers behind.

Linux sends SIGTERM when the parent is gone (``PR_SET_PDEATHSIG``); elsewhere the child looks at its parent's pid.
Either way it drains: jobs in hand may end.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 1.0


def die_with_parent(parent_pid: int) -> bool:
    """Ask for SIGTERM when the parent dies. False: the parent ``parent_pid`` is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return os.getppid() == parent_pid  # asked after prctl: the parent can't die unnoticed in between


async def parent_gone(parent_pid: int) -> None:
    """Return when the parent has died. The backstop where there is no signal for it."""
    while os.getppid() == parent_pid:  # noqa: ASYNC110 nobody tells us
        await asyncio.sleep(_LOOK_SECONDS)
