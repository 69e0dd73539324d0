"""The processes under ``pipeserve serve``: started, watched, started again when they die, and ended.

Each is a session of its own: Ctrl-C in the terminal reaches only ``serve``, which ends them in order. On Linux each
gets SIGTERM when ``serve`` dies, so that not even ``kill -9`` leaves one behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeserve.cli.output import tell
from pipeserve.errors import PipeserveError
from pipeserve.parent import preexec_die_with_parent

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
STABLE_SECONDS = 30.0
"""A child that lived for so long has not failed at its start: the pauses begin anew."""


class StartError(PipeserveError):
    """A part of the service ended before the service was ready."""


class Child:
    """One part of the service, as a process."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self.proven = False
        """Whether the service was ready once: from then on a death is an accident, and not a failure to start."""
        self._command = command
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Keep the process running until :meth:`end`. Raises StartError when it ends before it was ``proven``."""
        pause = FIRST_PAUSE
        while not self._ending.is_set():
            started = time.monotonic()
            self._process = process = await self._spawn()
            code = await process.wait()
            if self._ending.is_set():
                return
            if not self.proven:
                raise StartError(f"{self.name} ended at its start ({_in_words(code)}); the lines above say why")
            if time.monotonic() - started > STABLE_SECONDS:
                pause = FIRST_PAUSE
            tell(f"pipeserve: {self.name} ended ({_in_words(code)}); starting it again in {pause:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def end(self) -> None:
        """Ask it to end, and let nothing follow. A second call reaches it as a second signal."""
        self._ending.set()
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it and all processes that it has started, at once."""
        self._ending.set()
        if self._process is not None and self._process.returncode is None:
            for pid in [self._process.pid, *descendants_of(self._process.pid)]:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _spawn(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=preexec_die_with_parent(),
        )


def descendants_of(pid: int) -> list[int]:
    """The processes that ``pid`` has started and they in turn; empty where there is no /proc."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for word in children.read_text().split():
                found += [int(word), *descendants_of(int(word))]
    return found


def _in_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"
