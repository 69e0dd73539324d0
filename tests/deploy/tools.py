"""Programs that only these tests need, and what the settings are called."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

from pipeserve import settings


def needed(program: str, variable: str, package: str) -> str:
    """Where it is: ``variable``, else in PATH. Without it the test is skipped, or fails where ``CI`` is set."""
    found = shutil.which(os.environ.get(variable) or program)
    return found or _missing(f"{program} is not installed ({package}), nor does {variable} name it")


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def variables() -> set[str]:
    """Every variable that pipeserve reads."""
    models = [kind for kind in vars(settings).values() if isinstance(kind, type) and hasattr(kind, "from_environment")]
    return {str(field.alias) for model in models for field in model.model_fields.values()}
