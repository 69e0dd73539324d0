"""Hands calls of steps to child processes."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

from pipeserve.errors import DrainingError, StepFailedError
from pipeserve.runtime.processes.messages import Call, Start, packed, packed_arguments
from pipeserve.runtime.processes.place import PipelinePlace, StepPlace
from pipeserve.runtime.processes.process import StepProcess
from pipeserve.sdk.context import RunControl, StepContext, run_of
from pipeserve.sdk.definition import PipelineDefinition, StepDefinition
from pipeserve.sdk.stream import Stream, Streamed
from pipeserve.settings import LogFormat

_CLOSE_SECONDS = 2.0
"""How long idle children have to end by themselves: their ``on_cleanup``, what is registered with ``atexit``."""


class ProcessPool:
    """Up to ``max_processes`` children, which run the steps of one pipeline; calls beyond that wait in order.

    An async context manager; use it on one loop. A child is started when a call finds none idle, and kept for the next
    call. Steps and the pipeline's ``on_init`` are checked when the pool is made: DefinitionError says what children
    could not import.
    """

    def __init__(self, pipeline: PipelineDefinition, *, max_processes: int) -> None:
        self._pipeline = pipeline
        self._slots = asyncio.Semaphore(max_processes)
        self._places: dict[int, tuple[StepDefinition, StepPlace]] = {}
        self._hello: bytes | None = None
        self._idle: list[StepProcess] = []
        self._busy: set[StepProcess] = set()
        self._dying: set[StepProcess] = set()
        self._closed = False
        own = [step for step in pipeline.steps if step.executor == "process"]
        for step in own:
            self._place(step)
        if own:
            PipelinePlace.of(pipeline)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill what runs, let idle children end, and leave none behind."""
        self._closed = True
        self._slots.release()  # whoever waits for a child learns of it, one after the other
        children = [*self._idle, *self._busy, *self._dying]
        for child in children:
            child.drain()
        ends = [child.gone(_CLOSE_SECONDS) for child in children]
        for child, gone in zip(children, await asyncio.gather(*ends), strict=True):
            if not gone:
                child.kill()
        await asyncio.gather(*[child.gone() for child in children])
        for child in children:
            child.close()
        await asyncio.sleep(0)  # transports close with the loop's next round

    @property
    def processes(self) -> list[int]:
        """The process ids of its children."""
        return [child.pid for child in [*self._idle, *self._busy, *self._dying]]

    async def call(
        self,
        step: StepDefinition,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        control: RunControl | StepContext,
        *,
        begun: Callable[[], object] = lambda: None,
    ) -> Any:
        """The value of one call of ``step``, named ``name``, in a child; a stream's is the list of what it yields.

        What the step reports goes to ``control``, the run or the step's own context, as it happens. ``begun`` is called
        when the step begins in its child: the wait for one, and a new one's imports, are over. Raises what the
        step raises, with the child's traceback as its cause; StepFailedError where that can't be pickled;
        ProcessDiedError; TypeError for an argument or value that can't be pickled. A cancel kills the child at once.
        """
        context = control if isinstance(control, StepContext) else StepContext(control, name)
        place = self._place(step)
        args = tuple([await _whole(value) for value in args])
        kwargs = {key: await _whole(value) for key, value in kwargs.items()}
        arguments = packed_arguments([parameter.name for parameter in step.parameters], args, kwargs)
        child = await self._take(name)
        try:
            remaining = context.remaining()
            call = Call(
                place=place,
                name=name,
                mode=step.mode.value,
                job_id=context.job_id,
                attempt=context.attempt,
                run_name=context.run_name,
                deadline=math.inf if math.isinf(remaining) else time.monotonic() + remaining,
                timeout=step.timeout,
                followed=bool(getattr(run_of(context), "followed", True)),
                veiled=getattr(run_of(context), "veil", None) is not None,
                draws=bool(getattr(run_of(context), "draws", True)),
                log_limit=getattr(run_of(context), "log_limit", sys.maxsize),
            )
            return await child.call(packed(call), arguments, context, streams=step.mode.streams, begun=begun)
        finally:
            await self._put_back(child)

    def _place(self, step: StepDefinition) -> StepPlace:
        known = self._places.get(id(step))
        if known is None:
            known = self._places[id(step)] = (step, StepPlace.of(step))
        return known[1]

    # ---- children

    async def _take(self, name: str) -> StepProcess:
        await self._slots.acquire()
        try:
            if self._closed:
                raise _closing()
            child = self._idle.pop() if self._idle else await self._start(name)
        except BaseException:
            self._slots.release()
            raise
        self._busy.add(child)
        return child

    async def _start(self, name: str) -> StepProcess:
        if self._hello is None:
            self._hello = packed(self._start_message())
        try:
            child = await StepProcess.start(self._hello, self._ended)
        except OSError as error:
            raise StepFailedError(f"step {name!r} failed: no process could be started: {error}", step=name) from error
        if self._closed:
            child.kill()
            await child.gone()
            raise _closing()
        return child

    async def _put_back(self, child: StepProcess) -> None:
        if child not in self._busy:  # it has died meanwhile
            child.close()
            return
        self._busy.discard(child)
        if child.ready and not self._closed:
            self._idle.append(child)
            self._slots.release()
            return
        self._dying.add(child)
        child.kill()
        await child.gone()

    def _ended(self, child: StepProcess) -> None:
        """A child has died. Its place is free only now, so there are never more than allowed."""
        if child in self._idle:
            self._idle.remove(child)
            child.close()
            return
        if child in self._dying:
            child.close()
        self._dying.discard(child)
        self._busy.discard(child)
        self._slots.release()

    def _start_message(self) -> Start:
        root = logging.getLogger()
        return Start(
            pipeline=PipelinePlace.of(self._pipeline),
            argv=sys.argv,
            capture_logs=self._pipeline.capture.logs,
            log_level=root.level,
            log_form=_log_form(root),
        )


def _closing() -> DrainingError:
    return DrainingError("The process that ran this is shutting down.")


async def _whole(value: Any) -> Any:
    """A stream that another step still yields is read to its end: it can't be read from another process."""
    if not isinstance(value, Stream) or isinstance(value, Streamed):
        return cast(Any, value)
    return Streamed([item async for item in cast(Stream[Any], value)])


def _log_form(root: logging.Logger) -> LogFormat | None:
    """How this process's lines look, if it logs as services do."""
    log = sys.modules.get("pipeserve.process_log")
    for handler in root.handlers:
        if log is not None and isinstance(handler.formatter, log.StructuredFormatter):
            return cast(LogFormat, getattr(handler.formatter, "form"))  # noqa: B009 (the type is known there only)
    return None
