"""Keeps N worker processes alive, and gives a dead one's jobs back the moment that it dies.

A process is the unit that can be lost: a step that takes the interpreter with it (``os._exit``, a crash in C code,
the kernel's OOM killer) must cost one process, and its jobs must go on elsewhere at once. The lease does that too, but
only when it runs out; the supervisor is the one who *knows*.

It runs no pipeline code. Children are sessions of their own, so that Ctrl-C on a terminal reaches them once, through
the supervisor.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pipeserve.errors import ConfigurationError, StoreUnavailableError
from pipeserve.process_log import Log, configure_logging, get_log
from pipeserve.runtime.backoff import Backoff
from pipeserve.runtime.ports import JobLedger
from pipeserve.store import open_store
from pipeserve.store.connection import owner_token
from pipeserve_worker.drain import StopSignals, stop_signals
from pipeserve_worker.identity import new_nonce
from pipeserve_worker.loading import find_deployment
from pipeserve_worker.options import Options

#: The exit code of a process that can't serve its deployment (see ``child.CANNOT_SERVE``).
_CANNOT_SERVE = 2
#: Seconds after which a child's death is no longer part of the failures before it.
_HEALTHY_SECONDS = 60.0
#: Seconds beyond the drain after which a child that has not ended is killed: what its own last steps may take.
_KILL_AFTER = 20.0
_REPORT_SECONDS = 1.0
_RESTART_FIRST, _RESTART_LIMIT = 0.2, 10.0
#: Seconds for which a store that is away may hold up the supervisor's exit.
_RELEASE_SECONDS = 5.0


class CannotServeError(ConfigurationError):
    """A child can't serve the deployment, and none could; the message is the child's."""


@dataclass(frozen=True, slots=True)
class _Child:
    process: asyncio.subprocess.Process
    owner: str
    started: float
    report: asyncio.Task[str]


class Supervisor:
    """The processes of one deployment's workers on this machine. ``command`` starts one child (arguments are added)."""

    def __init__(
        self,
        *,
        command: Sequence[str],
        environment: dict[str, str],
        ledger: JobLedger,
        processes: int,
        drain_seconds: float,
        stop: StopSignals,
        log: Log,
    ) -> None:
        self._command = tuple(command)
        self._environment = environment
        self._ledger = ledger
        self._processes = processes
        self._drain_seconds = drain_seconds
        self._stop = stop
        self._log = log
        self._children: set[_Child] = set()
        self._releases: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Keep the children alive until asked to stop. Raises CannotServeError if they can't serve the deployment."""
        slots = [asyncio.create_task(self._keep(), name=f"slot-{n}") for n in range(self._processes)]
        try:
            await asyncio.wait(slots, return_when=asyncio.FIRST_EXCEPTION)
            self._stop.asked.set()  # one slot failed: the others stop as for a SIGTERM
            await asyncio.wait(slots)
            await self._finish_releases()
        finally:
            for child in self._children:
                with suppress(ProcessLookupError):
                    child.process.kill()
        for slot in slots:
            slot.result()

    async def _keep(self) -> None:
        """One slot: a child, and another one when it dies."""
        backoff = Backoff(_RESTART_FIRST, _RESTART_LIMIT)
        while not self._stop.asked.is_set():
            try:
                child = await self._spawn()
            except OSError as error:  # no process or no memory left: others may end
                self._log.error("no worker process could be started", error=str(error))
                await self._pause(backoff.next())
                continue
            self._children.add(child)
            try:
                code = await self._watch(child)
            finally:
                self._children.discard(child)
            # The message, not the code alone: a step may leave with any code.
            if code == _CANNOT_SERVE and (message := await _report_of(child)):
                raise CannotServeError(message)
            child.report.cancel()
            self._release_soon(child, lost=code != 0)
            if self._stop.asked.is_set():
                return
            if time.monotonic() - child.started > _HEALTHY_SECONDS:
                backoff.reset()
            delay = backoff.next()
            self._log.error(
                "worker process died; its jobs go back", child=child.owner, code=code, restart_in=round(delay, 2)
            )
            await self._pause(delay)

    async def _pause(self, delay: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._stop.asked.wait()

    async def _spawn(self) -> _Child:
        nonce = new_nonce()
        reader, writer = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *("--child", nonce, "--parent-pid", str(os.getpid()), "--report-fd", str(writer)),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(writer,),
                start_new_session=True,
            )
        finally:
            os.close(writer)
        owner = owner_token(process.pid, nonce)
        self._log.debug("worker process started", child=owner)
        report = asyncio.create_task(_read_all(reader), name=f"report-{process.pid}")
        return _Child(process, owner, time.monotonic(), report)

    async def _watch(self, child: _Child) -> int:
        """Wait for the child's end; its exit code. Passes on what is asked of this process, and kills if need be."""
        ended = asyncio.create_task(child.process.wait(), name=f"child-{child.process.pid}")
        if not await _first(ended, self._stop.asked, None):
            _send(child, signal.SIGTERM)
            if not await _first(ended, self._stop.at_once, self._drain_seconds + _KILL_AFTER):
                # The child takes any second signal as one, and two SIGTERMs in a row could merge into one.
                _send(child, signal.SIGINT)
                await asyncio.wait([ended], timeout=_KILL_AFTER)
        if not ended.done():
            self._log.error("worker process did not end; killing it", child=child.owner)
            _send(child, signal.SIGKILL)
        return await ended

    def _release_soon(self, child: _Child, *, lost: bool) -> None:
        task = asyncio.create_task(self._release(child.owner, lost=lost), name=f"release-{child.owner}")
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def _release(self, owner: str, *, lost: bool) -> None:
        backoff = Backoff(0.05, 1.0)
        while True:
            try:
                count = await self._ledger.release(owner, lost=lost)
            except StoreUnavailableError:
                await asyncio.sleep(backoff.next())
                continue
            if count:
                self._log.warning("gave back the jobs of a worker process", child=owner, jobs=count, lost=lost)
            return

    async def _finish_releases(self) -> None:
        if self._releases:
            await asyncio.wait(list(self._releases), timeout=_RELEASE_SECONDS)
        for task in self._releases:
            task.cancel()


async def _first(ended: asyncio.Task[int], event: asyncio.Event, timeout: float | None) -> bool:
    """Wait for the child's end or ``event``, up to ``timeout`` seconds; whether the child has ended."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([ended, waiting], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return ended.done()


def _send(child: _Child, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        child.process.send_signal(number)


async def _report_of(child: _Child) -> str:
    """What the child said before its end; empty if nothing. A grandchild that holds the pipe can't hold us up."""
    done, _ = await asyncio.wait([child.report], timeout=_REPORT_SECONDS)
    return child.report.result() if done else ""


async def _read_all(descriptor: int) -> str:
    """What a child writes before its end; empty as a rule."""
    loop = asyncio.get_running_loop()
    stream = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb")
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
    try:
        return (await stream.read()).decode(errors="replace")
    finally:
        transport.close()


def run_supervisor(options: Options) -> int:
    """Run the workers of one deployment on this machine until SIGTERM or SIGINT; the exit code.

    0: drained. Raises ConfigurationError (CannotServeError for what a child says).
    """
    configure_logging(options.log.level)
    return asyncio.run(_supervise(options, get_log("pipeserve_worker", supervisor=os.getpid())))


async def _supervise(options: Options, log: Log) -> int:
    with stop_signals() as stop:
        async with open_store(options.store) as store:
            deployment = await find_deployment(store.registry, options.deployment.required(), log)
            async with store.deployment(deployment.id) as jobs:
                supervisor = Supervisor(
                    command=(sys.executable, "-m", "pipeserve_worker"),
                    # One store and one deployment for all children, also if the name means another one later.
                    environment=os.environ
                    | {
                        "PIPESERVE_REDIS_URL": store.url,
                        "ZENML_PIPELINE_DEPLOYMENT_ID": deployment.id,
                        "PIPESERVE_WORKER_CONCURRENCY": str(options.worker.concurrency),
                    },
                    ledger=jobs.ledger,
                    processes=options.worker.processes,
                    drain_seconds=options.worker.drain_seconds,
                    stop=stop,
                    log=log,
                )
                log.info("starting workers", processes=options.worker.processes, deployment_id=deployment.id)
                await supervisor.run()
    return 0
