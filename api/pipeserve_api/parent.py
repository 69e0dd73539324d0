"""Lets an API process end with the one that started it, where that one says so in the environment."""

from __future__ import annotations

import os

from pipeserve.parent import die_with_parent

VARIABLE = "PIPESERVE_PARENT_PID"


def follow_parent() -> None:
    """If ``PIPESERVE_PARENT_PID`` names our parent, get SIGTERM when it dies (Linux). Leaves if it is dead already."""
    expected = os.environ.get(VARIABLE)
    if expected is not None and not die_with_parent(int(expected)):
        raise SystemExit(0)
