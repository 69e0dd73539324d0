"""Ties a process to the one that started it, so that a killed parent leaves nothing behind.

On Linux the kernel sends SIGTERM when the parent is gone (``PR_SET_PDEATHSIG``, tied to the parent's *thread* that
started the child); elsewhere the child looks at its parent's pid now and then.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 1.0


def die_with_parent(parent_pid: int, number: signal.Signals = signal.SIGTERM) -> bool:
    """In a child: ask for a signal when the parent dies. False: the parent ``parent_pid`` is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    return os.getppid() == parent_pid  # asked after prctl: the parent can't die unnoticed in between


async def parent_gone(parent_pid: int) -> None:
    """In a child: return when the parent has died. The backstop where there is no signal for it."""
    while os.getppid() == parent_pid:  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(_LOOK_SECONDS)


def preexec_die_with_parent() -> Callable[[], None] | None:
    """For ``Popen(preexec_fn=…)``: what the child does before it becomes a program that can't ask for itself.

    Prepared here, in the parent: between fork and exec only the call itself is safe.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before prctl
            os._exit(1)

    return in_child
