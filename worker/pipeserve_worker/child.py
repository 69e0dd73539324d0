"""One worker process: opens everything that running jobs needs, runs until it is told to stop, and drains."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pipeserve.errors import ConfigurationError, DefinitionError, TargetError
from pipeserve.parent import die_with_parent, parent_gone
from pipeserve.process_log import Log, configure_logging, get_log
from pipeserve.runtime.cache.teller import CacheTeller
from pipeserve.runtime.deployed import find_deployment
from pipeserve.runtime.garbage import settle_memory
from pipeserve.runtime.line_fields import ContextFields
from pipeserve.runtime.ports import JobLedger
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.runtime.tasks import end_tasks
from pipeserve.runtime.upkeep import Upkeep
from pipeserve.runtime.values.artifact_writer import ArtifactWriter
from pipeserve.runtime.values.artifacts import ArtifactStore
from pipeserve.store import WakeUps, open_store
from pipeserve.store.connection import owner_token
from pipeserve.telemetry import existing_tracing, open_tracing
from pipeserve_worker.cancels import listen_for_cancels
from pipeserve_worker.drain import StopSignals, drain, given_up_when, leave, stop_signals
from pipeserve_worker.heartbeat import Heartbeat
from pipeserve_worker.identity import Identity
from pipeserve_worker.loading import load_definition
from pipeserve_worker.options import ChildOptions, Options
from pipeserve_worker.report import Report, Word
from pipeserve_worker.retirement import Retirement
from pipeserve_worker.runner import JobRunner
from pipeserve_worker.worker import JobWorker

#: What this process can't serve however often it tries: the supervisor must not start it again.
CANNOT_SERVE = (ConfigurationError, TargetError, DefinitionError)

#: Seconds that closing may take once the jobs are over: ``on_cleanup``, connections, idle threads.
_CLOSE_SECONDS = 10.0


def run_child(options: Options, child: ChildOptions) -> int:
    """Be a worker process until SIGTERM, SIGINT or the supervisor's death; the exit code.

    0: drained. 2: this process can't serve the deployment, and the reason was reported. 1: anything else.
    """
    fields = ContextFields()
    configure_logging(options.log.level, form=options.log.format, fields=fields)
    owner = owner_token(os.getpid(), child.nonce)
    log = get_log("pipeserve_worker", worker=owner)
    report = Report(child.report_fd)
    if not die_with_parent(child.parent_pid):
        return 0
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            code = runner.run(_serve(options, child, report, owner, log, fields))
        except CANNOT_SERVE as error:
            report.say(Word.REFUSE, str(error))
            code = 2
        except Exception:  # whatever else ends the process: say what, and let the supervisor start another
            log.exception("the worker broke")
            code = 1
        if fields.tracing is not None:
            fields.tracing.close()
        return leave(code)  # before the loop closes, which would wait for threads that nothing can stop


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not on this platform; asyncio's own loop does the same, slower
        return None
    return uvloop.new_event_loop


async def _serve(
    options: Options, child: ChildOptions, report: Report, owner: str, log: Log, fields: ContextFields
) -> int:
    # An executor that can be shut down without waiting: asyncio's own would wait for an on_init that never returns.
    executor = ThreadPoolExecutor(thread_name_prefix="worker")
    asyncio.get_running_loop().set_default_executor(executor)
    with stop_signals() as stop:
        watch = asyncio.create_task(_stop_without_parent(child.parent_pid, stop), name="parent")
        stack = AsyncExitStack()
        try:
            try:
                async with given_up_when(stop.asked) as opening:
                    process = await _open(options, owner, log, fields, stack)
            except CANNOT_SERVE:
                raise
            except Exception:  # whatever keeps it from serving (on_init, above all): the supervisor says it
                report.say(Word.BROKEN, traceback.format_exc())
                return 1
            if opening.expired():
                return 0
            report.say(Word.READY)
            await _work(process, options.worker.drain_seconds, report, stop, log)
            return 0
        finally:
            watch.cancel()
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await stack.aclose()
            except TimeoutError:
                log.warning("closing took too long; leaving all the same", seconds=_CLOSE_SECONDS)
            executor.shutdown(wait=False)


async def _stop_without_parent(parent_pid: int, stop: StopSignals) -> None:
    await parent_gone(parent_pid)
    stop.asked.set()


@dataclass(frozen=True, slots=True)
class _Process:
    """What one worker process runs with."""

    worker: JobWorker
    runner: JobRunner
    ledger: JobLedger
    retirement: Retirement


async def _open(options: Options, owner: str, log: Log, fields: ContextFields, stack: AsyncExitStack) -> _Process:
    """Everything up to the first claim, closed by ``stack`` in reverse."""
    store = await stack.enter_async_context(open_store(options.store))
    # Its supervisor has found it. If it is not there now, the store was emptied, and the beats put it back.
    patience = options.store.lease_seconds
    deployment = await find_deployment(store.registry, options.deployment.required(), patience=patience)
    fields.deployment_id = deployment.id
    tracing = open_tracing(options.tracing, "pipeserve-worker")
    definition = load_definition(deployment)
    fields.tracing = tracing = tracing or existing_tracing()  # one that the pipeline's module has set up
    jobs = await stack.enter_async_context(store.deployment(deployment.id))
    await jobs.operations.log_faults()
    concurrency = options.worker.concurrency
    limits = options.runtime.model_copy(update={"max_concurrency": concurrency})
    memory_only, metrics = definition.capture.memory_only, definition.capture.metrics
    shared_cache = None if memory_only else jobs.cache
    runtime = await stack.enter_async_context(
        RealtimeRuntime(definition, limits, shared_cache=shared_cache, tracing=tracing)
    )
    if metrics and not memory_only:
        await stack.enter_async_context(CacheTeller(runtime.cache, jobs.operations, owner).telling())
    root = options.artifacts.root(options.store.data_dir)
    artifacts = await stack.enter_async_context(ArtifactStore(root, deployment.id, options.store.result_ttl))
    heartbeat = Heartbeat(store.url, jobs.keys, Identity(owner, concurrency), options.store, deployment)
    runner = JobRunner(
        runtime=runtime,
        definition=definition,
        ledger=jobs.ledger,
        deployment_id=deployment.id,
        leases=heartbeat,
        log=log,
        checkpoints=None if memory_only else jobs.checkpoints,
        artifacts=ArtifactWriter(artifacts, limits.event_buffer),
        attachments=jobs.attachments,
    )
    retirement = Retirement(options.worker.max_jobs_per_child, options.worker.max_rss, log)
    worker = JobWorker(
        pool=jobs.redis,
        keys=jobs.keys,
        wake_ups=await stack.enter_async_context(WakeUps(store.url, jobs.keys)),
        source=jobs.ledger,
        execution=runner,
        owner=owner,
        concurrency=concurrency,
        log=log,
        allowance=retirement,
    )
    stack.enter_context(heartbeat.beating(on_lost=runner.lose, on_cancel=runner.cancel))
    await stack.enter_async_context(_background(listen_for_cancels(jobs.signals, runner.cancel, log), "cancels"))
    await stack.enter_async_context(_background(retirement.watch(), "memory"))
    await stack.enter_async_context(Upkeep(jobs.ledger, owner))
    settle_memory()
    log.info(
        "ready",
        deployment_id=deployment.id,
        pipeline=definition.name,
        concurrency=concurrency,
        lease_seconds=options.store.lease_seconds,
    )
    return _Process(worker, runner, jobs.ledger, retirement)


async def _work(process: _Process, drain_seconds: float, report: Report, stop: StopSignals, log: Log) -> None:
    """Claim and run jobs until asked to stop or until another process has taken this one's place, then drain."""
    worker, retirement = process.worker, process.retirement
    main = asyncio.create_task(worker.async_run(), name="worker")
    asked = asyncio.create_task(stop.asked.wait(), name="stop")
    due = asyncio.create_task(retirement.due.wait(), name="retirement")
    relieved = asyncio.create_task(stop.relieved.wait(), name="relieved")
    try:
        await asyncio.wait([main, asked, due], return_when=asyncio.FIRST_COMPLETED)
        if retirement.due.is_set():
            report.say(Word.RETIRE, retirement.reason)
            if report.heard:
                await asyncio.wait([main, asked, relieved], return_when=asyncio.FIRST_COMPLETED)
        worker.stop()
        await asyncio.wait([main])  # a claim on its way still brings jobs
        if retirement.due.is_set():
            idle = asyncio.create_task(worker.wait_idle(), name="last-jobs")
            await asyncio.wait([idle, asked], return_when=asyncio.FIRST_COMPLETED)
            idle.cancel()
    finally:
        for task in (asked, due, relieved):
            task.cancel()
    await drain(worker, process.runner, process.ledger, seconds=drain_seconds, stop=stop, log=log)
    report.say(Word.DRAINED)
    main.result()


@asynccontextmanager
async def _background(work: Coroutine[Any, Any, None], name: str) -> AsyncGenerator[None]:
    """Runs ``work`` in a task meanwhile."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        await end_tasks([task])
