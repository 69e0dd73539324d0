"""Keeps N worker processes alive, and gives a dead one's jobs back the moment that it dies.

A process is the unit that can be lost: a step that takes the interpreter with it (``os._exit``, a crash in C code,
the kernel's OOM killer) must cost one process, and its jobs must go on elsewhere at once. The lease does that too, but
only when it runs out; the supervisor is the one who *knows*.

A process that has done enough (:mod:`pipeserve_worker.retirement`) asks for a successor, and leaves when that one is
ready. One is replaced at a time, and at most as many linger over their last jobs as there are slots.

It runs no pipeline code.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pipeserve.errors import ConfigurationError
from pipeserve.process_log import Log, configure_logging, get_log
from pipeserve.runtime.deployed import find_deployment
from pipeserve.runtime.ports import JobLedger
from pipeserve.store import open_store
from pipeserve_worker.drain import StopSignals, given_up_when, stop_signals
from pipeserve_worker.options import Options
from pipeserve_worker.process import WorkerProcess, start_worker
from pipeserve_worker.releases import Releases
from pipeserve_worker.report import Word
from pipeserve_worker.restarts import HEALTHY_SECONDS, Restarts, StartFailures

#: The exit code of a process that can't serve its deployment (see ``child.CANNOT_SERVE``).
_CANNOT_SERVE = 2
#: Seconds beyond the drain after which a child that has not ended is killed: what its own last steps may take.
_KILL_AFTER = 20.0


class CannotServeError(ConfigurationError):
    """A child can't serve the deployment, and none could; the message is the child's."""


@dataclass(frozen=True, slots=True)
class _Child:
    process: WorkerProcess
    over: asyncio.Task[None]
    """Done when it has ended and its jobs are on their way back."""


class Supervisor:
    """The processes of one deployment's workers on this machine. ``command`` starts one child (arguments are added)."""

    def __init__(
        self,
        *,
        command: Sequence[str],
        environment: Mapping[str, str],
        ledger: JobLedger,
        processes: int,
        drain_seconds: float,
        stop: StopSignals,
        log: Log,
        healthy_seconds: float = HEALTHY_SECONDS,
    ) -> None:
        self._command = tuple(command)
        self._environment = environment
        self._slots = processes
        self._drain_seconds = drain_seconds
        self._stop = stop
        self._log = log
        self._healthy_seconds = healthy_seconds
        self._releases = Releases(ledger, log)
        self._failures = StartFailures(log)
        self._children: set[_Child] = set()
        self._replacing = asyncio.Lock()
        self._refusal: str | None = None

    async def run(self) -> None:
        """Keep the children alive until asked to stop. Raises CannotServeError if they can't serve the deployment."""
        slots = [asyncio.create_task(self._keep(), name=f"slot-{n}") for n in range(self._slots)]
        try:
            await asyncio.wait(slots, return_when=asyncio.FIRST_EXCEPTION)
            self._stop.asked.set()  # one slot failed: the others stop as for a SIGTERM
            await asyncio.wait(slots)
            while self._children:
                await asyncio.wait([child.over for child in self._children])
            await self._releases.finish()
        finally:
            for child in self._children:
                child.process.send(signal.SIGKILL)
        for slot in slots:
            slot.result()
        if self._refusal is not None:
            raise CannotServeError(self._refusal)

    async def _keep(self) -> None:
        """One slot: a child, and another one when it has died or done enough."""
        restarts = Restarts(healthy_seconds=self._healthy_seconds)
        child: _Child | None = None
        while not self._stop.asked.is_set():
            if child is None:
                child = await self._start(restarts)
            elif child.over.done():
                await self._after(child, restarts)
                child = None
            elif child.process.retiring.is_set():
                child = await self._successor(child, restarts)
            else:
                await self._any(child.over, child.process.retiring.wait())

    async def _start(self, restarts: Restarts) -> _Child | None:
        try:
            process = await start_worker(self._command, self._environment)
        except OSError as error:  # no process or no memory left: others may end
            self._log.error("no worker process could be started", error=str(error))
            await self._pause(restarts.after_no_start())
            return None
        self._log.debug("worker process started", child=process.owner)
        child = _Child(process, asyncio.create_task(self._attend(process), name=f"attend-{process.owner}"))
        self._children.add(child)
        child.over.add_done_callback(lambda _: self._children.discard(child))
        return child

    async def _after(self, child: _Child, restarts: Restarts) -> None:
        """Say how a child has ended that was not asked to, and pause if it seems to be of no use to start another."""
        child.over.result()
        process, code = child.process, child.process.ended.result()
        if Word.DRAINED in process.told and process.retiring.is_set():
            self._log.info("worker process retired", child=process.owner, reason=process.told[Word.RETIRE])
            return
        delay = restarts.after(process)
        if Word.DRAINED in process.told:
            self._log.warning("worker process was stopped; starting another", child=process.owner)
        else:
            self._log.error(
                "worker process died; its jobs go back", child=process.owner, code=code, restart_in=round(delay, 2)
            )
        await self._pause(delay)

    async def _successor(self, child: _Child, restarts: Restarts) -> _Child | None:
        """The child that takes the place of one that has done enough; that one itself, if no other could start."""
        async with self._turn_of(child) as granted:
            if not granted:
                return child
            self._log.info(
                "replacing a worker process", child=child.process.owner, reason=child.process.told[Word.RETIRE]
            )
            successor = await self._start(restarts)
            if successor is None:
                return child
            await self._any(successor.process.ready.wait(), successor.over)
            if successor.over.done():
                await self._after(successor, restarts)
                return child
            child.process.relieve()
            return successor

    @asynccontextmanager
    async def _turn_of(self, child: _Child) -> AsyncGenerator[bool]:
        """One replacement at a time, and not too many that linger. False: the child has ended or all is to stop."""
        turn = asyncio.create_task(self._replacing.acquire())
        try:
            await self._any(turn, child.over)
            while turn.done() and len(leaving := self._leaving()) >= self._slots and self._wanted(child):
                await self._any(*leaving, child.over)
            yield turn.done() and self._wanted(child)
        finally:
            if not turn.cancel():
                self._replacing.release()
            await asyncio.wait([turn])

    def _wanted(self, child: _Child) -> bool:
        return not (child.over.done() or self._stop.asked.is_set())

    def _leaving(self) -> list[asyncio.Task[None]]:
        return [child.over for child in self._children if child.process.relieved and not child.over.done()]

    async def _attend(self, process: WorkerProcess) -> None:
        """See one child to its end: pass on what is asked of this process, kill it if need be, give its jobs back."""
        if not await _first(process.ended, self._stop.asked, None):
            await self._end(process)
        code = await process.ended
        if code == 0:  # a step may leave with it too: only its words say whether it holds nothing any more
            await process.heard_out()
        drained = Word.DRAINED in process.told
        self._releases.soon(process.owner, lost=not drained)
        if code in (1, _CANNOT_SERVE):
            await process.heard_out()
        process.close()
        self._failures.note(process)
        if process.relieved:
            tell = self._log.info if drained else self._log.error
            tell("worker process retired" if drained else "worker process died as it retired", child=process.owner)
        # The message, not the code alone: a step may leave with any code.
        if code == _CANNOT_SERVE and (message := process.told.get(Word.REFUSE)):
            self._refusal = message
            self._stop.asked.set()

    async def _end(self, process: WorkerProcess) -> None:
        process.send(signal.SIGTERM)
        if not await _first(process.ended, self._stop.at_once, self._drain_seconds + _KILL_AFTER):
            # The child takes any second signal as one, and two SIGTERMs in a row could merge into one.
            process.send(signal.SIGINT)
            await asyncio.wait([process.ended], timeout=_KILL_AFTER)
        if not process.ended.done():
            self._log.error("worker process did not end; killing it", child=process.owner)
            process.send(signal.SIGKILL)

    async def _pause(self, delay: float) -> None:
        if delay:
            await self._any(asyncio.sleep(delay))

    async def _any(self, *things: Awaitable[object]) -> None:
        """Wait for one of ``things``, or to be asked to stop."""
        waits = [self._stop.asked.wait(), *things]
        tasks = [thing if isinstance(thing, asyncio.Task) else asyncio.ensure_future(thing) for thing in waits]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for thing, task in zip(waits, tasks, strict=True):
                if thing is not task:  # made here
                    task.cancel()


async def _first(ended: asyncio.Task[int], event: asyncio.Event, timeout: float | None) -> bool:
    """Wait for the child's end or ``event``, up to ``timeout`` seconds; whether the child has ended."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([ended, waiting], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return ended.done()


def run_supervisor(options: Options) -> int:
    """Run the workers of one deployment on this machine until SIGTERM or SIGINT; the exit code.

    0: drained. Raises ConfigurationError (CannotServeError for what a child says).
    """
    configure_logging(options.log.level, form=options.log.format)
    return asyncio.run(_supervise(options, get_log("pipeserve_worker", supervisor=os.getpid())))


async def _supervise(options: Options, log: Log) -> int:
    with stop_signals() as stop:
        async with open_store(options.store) as store:
            async with given_up_when(stop.asked) as finding:
                deployment = await find_deployment(store.registry, options.deployment.required())
            if finding.expired():
                return 0
            async with store.deployment(deployment.id) as jobs:
                supervisor = Supervisor(
                    command=(sys.executable, "-m", "pipeserve_worker"),
                    # One store and one deployment for all children, also if the name means another one later.
                    environment=os.environ
                    | options.for_children()
                    | {"PIPESERVE_REDIS_URL": store.url, "ZENML_PIPELINE_DEPLOYMENT_ID": deployment.id},
                    ledger=jobs.ledger,
                    processes=options.worker.processes,
                    drain_seconds=options.worker.drain_seconds,
                    stop=stop,
                    log=log,
                )
                log.info("starting workers", processes=options.worker.processes, deployment_id=deployment.id)
                await supervisor.run()
    return 0
