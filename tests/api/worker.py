"""A worker for tests: claims from the store in this process and runs what it finds, one job after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import orjson
from tests.api.harness import Served

from pipeserve.runtime.cache import receipts
from pipeserve.runtime.executor import Run
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.runtime.recording.recorder import LiveRecorder
from pipeserve.runtime.run import RunRequest
from pipeserve.runtime.tasks import end_tasks


@asynccontextmanager
async def working(served: Served) -> AsyncIterator[None]:
    """Run the queued jobs of ``served`` until the block ends."""
    definition = served.services.definition
    shared_cache = None if definition.capture.memory_only else served.store.cache
    settings = served.services.settings.runtime
    async with RealtimeRuntime(definition, settings, shared_cache=shared_cache) as runtime:
        task = asyncio.create_task(_work(served, runtime))
        try:
            yield
        finally:
            while not task.done():  # more than once: now and then a store client's timeout swallows a cancel
                task.cancel()
                await asyncio.wait([task], timeout=1)
            if not task.cancelled():
                task.result()


async def _work(served: Served, runtime: RealtimeRuntime) -> None:
    ledger, definition = served.store.ledger, served.services.definition
    runs: dict[str, Run] = {}
    async with served.store.signals.listen() as cancelled:
        obeying = asyncio.create_task(_obey(cancelled, runs))
        try:
            while True:
                for claim in await ledger.claim("test-worker", 1):
                    bound = definition.parameters.validate(orjson.loads(claim.parameters))
                    request = RunRequest(
                        claim.job_id,
                        claim.attempt,
                        bound,
                        claim.run_name,
                        claim.timeout,
                        cache_read=claim.cache == "use",
                        cache_write=claim.cache != "no-store",
                    )
                    attachments = served.store.attachments
                    recorder = LiveRecorder(ledger, claim.job_id, claim.attempt, definition, attachments=attachments)
                    async with recorder:
                        runs[claim.job_id] = run = runtime.start(request, recorder)
                        result = await run.wait()
                        await recorder.finish(result, counters=receipts.counters(result.steps))
                await asyncio.sleep(0.005)
        finally:
            await end_tasks([obeying])


async def _obey(cancelled: AsyncIterator[str], runs: Mapping[str, Run]) -> None:
    async for job_id in cancelled:
        if job_id in runs:
            runs[job_id].cancel("asked to")
