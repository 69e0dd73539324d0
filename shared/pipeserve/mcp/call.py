"""One call of the pipeline: a job that is submitted, followed to its end, and canceled if its caller gives up.

The job lives in the service. Its caller's connection may break, and this process may end: only a cancel stops it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any

import anyio
from mcp_types import CallToolResult

from pipeserve.client import AsyncClient, AsyncJob
from pipeserve.errors import PipeserveError
from pipeserve.mcp.failures import failed
from pipeserve.mcp.reporter import Reporter
from pipeserve.mcp.results import completed, shown

LABELS = {"source": "mcp"}
"""Of every job, to find those that agents started."""
_CANCEL_SECONDS = 5.0
"""For which a caller who leaves is held up until the service knows."""


class PipelineCall:
    """Runs one call. ``leaving``: whether this process ends, which is no reason to cancel a job."""

    def __init__(
        self,
        client: AsyncClient,
        reporter: Reporter,
        output_schema: dict[str, Any] | None,
        leaving: Callable[[], bool],
    ) -> None:
        # With a key of its own it is submitted once, however often the request has to be sent.
        self._client = client.with_options(idempotency_key=str(uuid.uuid4()), labels=LABELS)
        self._reporter = reporter
        self._schema = output_schema
        self._leaving = leaving
        self._job: AsyncJob | None = None

    async def run(self, arguments: dict[str, Any]) -> CallToolResult:
        """The job's result, or the failure that it ended with."""
        try:
            self._job = await self._client.submit(arguments)
            return await self._follow(self._job)
        except PipeserveError as error:
            return failed(error, job_id=None if self._job is None else self._job.job_id)
        except anyio.get_cancelled_exc_class():
            if not self._leaving():
                with anyio.move_on_after(_CANCEL_SECONDS, shield=True), suppress(PipeserveError):
                    # A submission that was interrupted may have arrived: the same key finds its job.
                    job = self._job or await self._client.submit(arguments)
                    await job.cancel("canceled by its MCP client")
            raise

    async def _follow(self, job: AsyncJob) -> CallToolResult:
        async with aclosing(job.events()) as events:
            async for event in events:
                await self._reporter.tell(event)
        result = completed(await job.result(), self._schema)
        if self._reporter.visualizations:
            result.content.extend(await shown(job))
        return result
