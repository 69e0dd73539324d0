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
from pipeserve.sdk.batch import Batch
from pipeserve.sdk.cache import Cache
from pipeserve.sdk.capture import Capture
from pipeserve.sdk.context import StepContext, emit, get_context, log_metadata, progress, visualize
from pipeserve.sdk.materializer import Materializer
from pipeserve.sdk.pipeline import Pipeline, pipeline
from pipeserve.sdk.retry import Retry
from pipeserve.sdk.secret import Redact, Secret
from pipeserve.sdk.step import Step, step
from pipeserve.sdk.stream import Stream, Streamed
from pipeserve.sdk.visual import HTML, PNG, Markdown

if TYPE_CHECKING:
    from pipeserve.client import AsyncClient, Client

__version__ = "0.1.0"

__all__ = [
    "HTML",
    "PNG",
    "AsyncClient",
    "Batch",
    "Cache",
    "Capture",
    "Client",
    "DefinitionError",
    "InvocationError",
    "Markdown",
    "Materializer",
    "Pipeline",
    "PipeserveError",
    "ProblemError",
    "Redact",
    "Retry",
    "Secret",
    "Step",
    "StepContext",
    "Stream",
    "Streamed",
    "emit",
    "get_context",
    "log_metadata",
    "pipeline",
    "progress",
    "step",
    "visualize",
]


def __getattr__(name: str) -> Any:
    if name in ("AsyncClient", "Client"):
        import pipeserve.client

        return getattr(pipeserve.client, name)
    raise AttributeError(f"module 'pipeserve' has no attribute {name!r}")
