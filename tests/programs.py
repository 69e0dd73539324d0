"""Programs that only some tests need, and that pip does not install."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def needed(program: str, source: str, *, variable: str | None = None) -> str:
    """Where it is: what the environment's ``variable`` says, else in PATH. ``source`` says how to get it."""
    named = os.environ.get(variable) if variable else None
    # Debian keeps servers where only root's PATH looks.
    found = shutil.which(named or program, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin")
    elsewhere = f", nor does {variable} name it" if variable else ""
    return found or missing(f"{program} is not installed ({source}){elsewhere}")


def missing(reason: str) -> NoReturn:
    """Skip the test; where ``CI`` is set fail it: there none is left out unnoticed."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
