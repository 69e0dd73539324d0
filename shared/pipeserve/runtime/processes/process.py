"""The parent's side of one child: starts it, calls steps in it, and sees to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, Self

from pipeserve.errors import DrainingError, StepFailedError
from pipeserve.events import EventType
from pipeserve.runtime.processes.messages import HEADER, Failure, Kind, Report, Shown, frame
from pipeserve.sdk.context import StepContext, current_scope, run_of
from pipeserve.sdk.stream import Streamed

_log = logging.getLogger(__name__)

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from pipeserve.runtime.processes.child import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)
_BUFFER_BYTES = 262_144
"""Twice as much of what a child says is read ahead; beyond, the child waits."""
_STREAMS = {"print": "stdout", "stderr": "stderr"}
_FRAMES_AT_ONCE = 64  # then the loop's other work has its turn
_LINGER_SECONDS = 1.0
"""How long a dead child's last words are read, where a process that it has started holds its socket open; and how long
one that has closed its socket has to end."""
_DEATH_SECONDS = 5.0
"""How long a killed child is waited for. Only a process that hangs in the kernel, on a dead disk say, takes longer."""


class ProcessDiedError(StepFailedError):
    """The process in which a step ran has died."""

    def __init__(self, step: str, exit_code: int) -> None:
        super().__init__(f"step {step!r} failed: its process died ({_words_of(exit_code)})", step=step)
        self.exit_code = exit_code
        """Negative: minus the number of the signal that killed it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ProcessDiedError, (self.step, self.exit_code)


class StepProcess:
    """One child process. Use it on the loop on which it was started, for one call at a time."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_end: Callable[[StepProcess], object],
    ) -> None:
        self._popen = popen
        self._reader = reader
        self._writer = writer
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._lock = threading.Lock()
        self._linger: asyncio.TimerHandle | None = None
        self._draining = False
        self.ready = True
        """Whether it waits for a call."""
        threading.Thread(target=self._watch, name=f"process-{popen.pid}", daemon=True).start()

    @classmethod
    async def start(cls, hello: bytes, on_end: Callable[[StepProcess], object]) -> Self:
        """A new child, which gets ``hello`` (a Start). ``on_end`` is called on the loop when it has died.

        Raises OSError: there is no process or memory left.
        """
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_BUFFER_BYTES)
            undo.pop_all()
            undo.callback(writer.transport.abort)
            # On the loop's own thread: the kernel ties the child's life to the thread that started it.
            popen = subprocess.Popen(  # noqa: ASYNC220 - a vfork, 1 ms; asyncio's way is a slow fork under uvloop
                [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno()), str(os.getpid()), json.dumps(_path())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a group of its own: what the step starts dies with it
            )
            undo.callback(popen.wait)
            undo.callback(popen.kill)
            child = cls(popen, reader, writer, on_end)
            undo.pop_all()
        writer.writelines(frame(Kind.START, hello))
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    async def call(
        self,
        call: bytes,
        arguments: bytes,
        context: StepContext,
        *,
        streams: bool,
        begun: Callable[[], object] = lambda: None,
    ) -> Any:
        """The value of one call (a pickled Call and its arguments); if it ``streams``, the list of what it yields.

        ``begun`` is called when the step's function is: the child has imported it, and ``on_init`` is over.

        Raises what the step raises, ProcessDiedError, or DrainingError after :meth:`drain`.

        Left early, by a cancel say, the child is not ``ready`` again, and must be killed.
        """
        self.ready = False
        self._writer.writelines([*frame(Kind.CALL, call), *frame(Kind.ARGUMENTS, arguments)])
        with contextlib.suppress(ConnectionError):  # it has died; reading says how
            await self._writer.drain()
        values: list[Any] = context.live.values if context.live is not None else Streamed[Any]()
        keep = context.live.put if context.live is not None else values.append
        count = 0
        while True:
            kind, body = await self._next(context)
            match kind:
                case Kind.BEGIN:
                    begun()
                case Kind.REPORT:
                    _report(body, context)
                case Kind.YIELD:
                    value = _loaded(body)
                    context.emit(value)
                    keep(value)
                case Kind.SHOW:
                    shown: Shown = pickle.loads(body)
                    context.visualize(shown.rendered, shown.name)
                case Kind.VALUE:
                    self.ready = True
                    return values if streams else _loaded(body)
                case _:
                    self.ready = True
                    _raise(pickle.loads(body), context.step_name)
            count += 1
            if count % _FRAMES_AT_ONCE == 0:
                await asyncio.sleep(0)

    def drain(self) -> None:
        """The pool is closing: kill it if it is busy, let it end if it is not."""
        self._draining = True
        if self.ready:
            self._writer.close()
        else:
            self.kill()

    def kill(self) -> None:
        """Kill it, and all that it has started, at once."""
        with self._lock:
            self._kill_group()

    async def gone(self, timeout: float = _DEATH_SECONDS) -> bool:
        """Wait for its death; False if that takes longer than ``timeout`` seconds."""
        done, _ = await asyncio.wait([self._ended], timeout=timeout)
        return bool(done)

    def close(self) -> None:
        """Let go of the socket. Nobody reads it any more."""
        if self._linger is not None:
            self._linger.cancel()
        self._writer.transport.abort()

    # ---- its words

    async def _next(self, context: StepContext) -> tuple[Kind, bytes]:
        try:
            kind, length = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            return Kind(kind), await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        if self._draining:
            raise DrainingError("The process that ran this is shutting down.")
        if not await self.gone(_LINGER_SECONDS):
            self.kill()
            await self.gone()
        raise ProcessDiedError(str(context.step_name), self._ended.result() if self._ended.done() else -signal.SIGKILL)

    # ---- its end

    def _watch(self) -> None:
        """In a thread of its own: wait for the child's death."""
        if sys.platform == "linux":
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            with self._lock:
                self._kill_group()  # what it has started, while its own id can't be another's yet
                code = self._popen.wait()
        else:
            code = self._popen.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._end, code)

    def _kill_group(self) -> None:
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: for a group of zombies
                os.killpg(self.pid, signal.SIGKILL)

    def _end(self, code: int) -> None:
        self._ended.set_result(code)
        # Until here there may be unread words of it. As a rule the socket ends by itself.
        self._linger = self._loop.call_later(_LINGER_SECONDS, self._writer.transport.abort)
        self._on_end(self)


def _path() -> list[str]:
    """Where this process looks for modules, for one that may have another idea of "here"."""
    return [str(place) or os.getcwd() for place in sys.path]


def _loaded(body: bytes) -> Any:
    try:
        return pickle.loads(body)
    except Exception as error:  # whatever the value's own code raises here
        raise TypeError(f"what the step's process sent can't be read here: {error}") from error


def _report(body: bytes, context: StepContext) -> None:
    try:
        report: Report = pickle.loads(body)
        event_type = EventType(report.event_type)
    except Exception as error:  # a class that only the child can import, say: telling must not fail the step
        _log.warning("step %r: what it reported can't be read here: %s", context.step_name, error)
        return
    run = run_of(context)
    if event_type is EventType.OUTPUT:
        context.emit(report.data["value"])  # numbered here, as one row with what it yields
    elif (
        event_type is EventType.LOG and getattr(run, "veil", None) is not None and report.data["logger"] != "pipeserve"
    ):
        _say(report, context)
    else:
        run.report(event_type, report.step_name, report.data, level=report.level, message=report.message)


def _say(report: Report, context: StepContext) -> None:
    """Write or log a line as the step itself would here: so it is told, and goes masked to the process's log."""
    name: str = report.data["logger"]
    token = current_scope.set(context)
    try:
        if name in _STREAMS:
            getattr(sys, _STREAMS[name]).write(f"{report.message}\n")
        else:
            level = logging.getLevelNamesMapping().get(str(report.level).upper(), logging.INFO)
            logging.getLogger(name).handle(logging.LogRecord(name, level, "", 0, report.message, None, None))
    finally:
        current_scope.reset(token)


def _raise(failure: Failure, step: str | None) -> None:
    trace = _ChildTraceback(failure.traceback)
    if failure.pickled is not None:
        try:
            error = pickle.loads(failure.pickled)
        except Exception as unreadable:  # whatever its class raises here, which went well in the child
            _log.debug("an exception of step %r can't be read: %s", step, unreadable)
        else:
            raise error from trace
    raise StepFailedError(f"step {step!r} failed: {failure.type_name}: {failure.words}", step=step) from trace


class _ChildTraceback(Exception):
    """Shows in a traceback what happened in the child; never raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def _words_of(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"
    return f"{name}; killed from outside, or for want of memory" if name == "SIGKILL" else name
