"""pipeserve turns typed Python pipelines into fast HTTP services.

This is what authors import. It stays cheap: no server library is loaded, and the HTTP client only when it is named.
"""

from typing import TYPE_CHECKING, Any

from pipeserve.errors import (
    DefinitionError,
    InvocationError,
    PipeserveError,
    ProblemError,
)
from pipeserve.sdk.capture import Capture
from pipeserve.sdk.context import StepContext, emit, get_context, log_metadata, progress
from pipeserve.sdk.pipeline import Pipeline, pipeline
from pipeserve.sdk.step import Step, step

if TYPE_CHECKING:
    from pipeserve.client import AsyncClient, Client

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Capture",
    "Client",
    "DefinitionError",
    "InvocationError",
    "Pipeline",
    "PipeserveError",
    "ProblemError",
    "Step",
    "StepContext",
    "emit",
    "get_context",
    "log_metadata",
    "pipeline",
    "progress",
    "step",
]


def __getattr__(name: str) -> Any:
    if name in ("AsyncClient", "Client"):
        import pipeserve.client

        return getattr(pipeserve.client, name)
    raise AttributeError(f"module 'pipeserve' has no attribute {name!r}")
