"""Lets a process end with the one that started it, so that a killed parent leaves nothing behind."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

VARIABLE = "PIPESERVE_PARENT_PID"
_PR_SET_PDEATHSIG = 1


def follow_parent() -> None:
    """If ``PIPESERVE_PARENT_PID`` names our parent, get SIGTERM when it dies (Linux). Leaves if it is dead already."""
    expected = os.environ.get(VARIABLE)
    if expected is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if str(os.getppid()) != expected:  # it died before we asked
        raise SystemExit(0)
