"""One worker process as its supervisor sees it: started, heard, ended."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pipeserve.store.connection import owner_token
from pipeserve_worker.identity import new_nonce
from pipeserve_worker.report import Word, read_line

#: Seconds for which the report of a process that has ended is read on, if something holds the pipe open.
_REPORT_SECONDS = 1.0
#: Bytes of one line of a report: a traceback at most.
_LINE_LIMIT = 1 << 20


class WorkerProcess:
    """A process that runs jobs; :func:`start_worker` makes it."""

    def __init__(self, process: asyncio.subprocess.Process, owner: str, report: int) -> None:
        self.owner = owner
        """Its owner token in the store."""
        self.ready = asyncio.Event()
        """Set once it claims jobs."""
        self.retiring = asyncio.Event()
        """Set once it asks for a successor."""
        self.ended = asyncio.create_task(process.wait(), name=f"child-{process.pid}")
        """Its exit code."""
        self.told: dict[Word, str] = {}
        """What it has said so far."""
        self.relieved = False
        """Whether it was told that its successor is there."""
        self._process = process
        self._ready_at: float | None = None
        self._reading = asyncio.create_task(self._read(report), name=f"report-{process.pid}")

    @property
    def served_seconds(self) -> float:
        """For how long it has claimed jobs; 0 if it never did."""
        return 0.0 if self._ready_at is None else time.monotonic() - self._ready_at

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it still lives."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def relieve(self) -> None:
        """Tell it that its successor is there: it claims no more, finishes what it has, and ends."""
        self.relieved = True
        self.send(signal.SIGUSR1)

    async def heard_out(self) -> None:
        """Return when all that it said before its end is in :attr:`told`.

        A grandchild that holds the pipe open can't hold us up.
        """
        await asyncio.wait([self._reading], timeout=_REPORT_SECONDS)

    def close(self) -> None:
        """Listen no more."""
        self._reading.cancel()

    async def _read(self, report: int) -> None:
        stream = asyncio.StreamReader(limit=_LINE_LIMIT)
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(report, "rb")
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
        try:
            while line := await stream.readline():
                if (said := read_line(line)) is not None:
                    self._hear(*said)
        except ValueError:  # a line without end: not ours
            return
        finally:
            transport.close()

    def _hear(self, word: Word, text: str) -> None:
        self.told[word] = text
        if word is Word.READY:
            self._ready_at = time.monotonic()
            self.ready.set()
        elif word is Word.RETIRE:
            self.retiring.set()


async def start_worker(command: Sequence[str], environment: Mapping[str, str]) -> WorkerProcess:
    """Start one with ``command``, in a session of its own. Raises OSError when there is no process or no memory left.

    Its own session, so that Ctrl-C on a terminal reaches it once, through its supervisor.
    """
    nonce = new_nonce()
    reader, writer = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            *("--child", nonce, "--parent-pid", str(os.getpid()), "--report-fd", str(writer)),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(writer,),
            start_new_session=True,
        )
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return WorkerProcess(process, owner_token(process.pid, nonce), reader)
