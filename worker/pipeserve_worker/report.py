"""What a worker process tells its supervisor: through a pipe, one line per word, with a text where one is needed.

An exit code alone would not do: a step may leave with any code, and it must not pass for the process's own end.
"""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum


class Word(StrEnum):
    """What can be told."""

    READY = "ready"
    """It claims jobs from now on."""
    RETIRE = "retire"
    """It has done enough, for the reason in the text: another process should take its place."""
    DRAINED = "drained"
    """It holds no job any more and is about to end."""
    REFUSE = "refuse"
    """It can't serve the deployment, and no other process could; the text says why."""
    BROKEN = "broken"
    """It could not start; the text is the traceback."""


class Report:
    """A worker process's end of the pipe. Without one (``descriptor`` is None) bad news goes to stderr."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        if descriptor is not None:
            os.set_inheritable(descriptor, False)  # a process that a step starts is not to hold it open

    @property
    def heard(self) -> bool:
        """Whether there is a supervisor."""
        return self._descriptor is not None

    def say(self, word: Word, text: str = "") -> None:
        """Tell it. A supervisor that is gone hears nothing."""
        if self._descriptor is None:
            if word in (Word.REFUSE, Word.BROKEN):
                sys.stderr.write(f"pipeserve worker: {text}\n")
            return
        line = f"{word} {json.dumps(text)}\n".encode()
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except BrokenPipeError:
            self._descriptor = None


def read_line(line: bytes) -> tuple[Word, str] | None:
    """The word of one line, with its text; None for a line that no worker process has written."""
    word, _, text = line.decode(errors="replace").strip().partition(" ")
    try:
        return Word(word), str(json.loads(text))
    except (ValueError, RecursionError):
        return None
