"""What a process and its child say to each other over their socket.

A frame is its kind (one byte), its length (eight) and a pickle. Pickle is right here, and only here: both ends run
the same code of one author, and nothing of it is kept.

======================  ===========================================================================
parent to child         ``START`` once; then for each call ``CALL`` and ``ARGUMENTS``
child to parent         ``BEGIN``, once it is ready for the call; any number of ``REPORT``, ``YIELD`` and
                        ``SHOW``; then ``VALUE`` or ``ERROR``
======================  ===========================================================================
"""

from __future__ import annotations

import pickle
import struct
from enum import IntEnum
from typing import Any, NamedTuple

from pipeserve.runtime.capture.visuals import Rendered
from pipeserve.runtime.processes.place import PipelinePlace, StepPlace
from pipeserve.settings import LogFormat

HEADER = struct.Struct("!BQ")
_JOINED_BYTES = 65_536


class Kind(IntEnum):
    """What a frame's pickle is."""

    START = 1
    CALL = 2
    ARGUMENTS = 3
    REPORT = 4
    YIELD = 5
    SHOW = 6
    VALUE = 7
    ERROR = 8
    BEGIN = 9
    """Without a pickle."""


class Start(NamedTuple):
    """What holds for all calls of one child."""

    pipeline: PipelinePlace
    argv: list[str]
    capture_logs: bool
    log_level: int
    log_form: LogFormat | None
    """How the lines of the parent's log look, if it has the service's own format."""


class Call(NamedTuple):
    """One call of a step, without its arguments."""

    place: StepPlace
    name: str
    mode: str
    job_id: str
    attempt: int
    run_name: str
    deadline: float
    """The run's, by ``time.monotonic()``, which all processes of a machine share."""
    timeout: float | None
    """The step's own, in seconds from its begin."""
    followed: bool
    """Whether anybody is told what it prints."""
    veiled: bool
    """Whether something of it may have to be masked: then only the parent writes its lines to the process's log."""
    draws: bool
    """Whether what it shows is kept."""
    log_limit: int
    """Bytes of log text that the run keeps: no more of it need be sent."""


class Report(NamedTuple):
    """What the step tells whoever follows the run, as :meth:`~pipeserve.sdk.context.RunControl.report` takes it."""

    event_type: str
    step_name: str | None
    data: Any
    level: str | None
    message: str | None


class Shown(NamedTuple):
    """What the step shows."""

    rendered: Rendered
    name: str | None


class Failure(NamedTuple):
    """What the step raised."""

    pickled: bytes | None
    """The exception, if it can be pickled."""
    type_name: str
    words: str
    traceback: str


def frame(kind: Kind, body: bytes) -> tuple[bytes, ...]:
    """The frame that carries ``body``, in the parts in which to send it: joined where that is cheaper."""
    header = HEADER.pack(kind, len(body))
    return (header + body,) if len(body) < _JOINED_BYTES else (header, body)


def packed(value: Any) -> bytes:
    """``value`` as a pickle."""
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def packed_arguments(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """A call's arguments as a pickle. Raises TypeError naming the argument that has none.

    ``names`` are those of the parameters that ``args`` are for.
    """
    try:
        return packed((args, kwargs))
    except Exception as whole:  # whatever the values' own code raises
        for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
            try:
                packed(value)
            except Exception as error:
                raise TypeError(
                    f"argument {name!r} ({type(value).__name__}) can't be sent to the step's process: {error}"
                ) from error
        raise TypeError(f"the arguments can't be sent to the step's process: {whole}") from whole


class Unsendable:
    """Stands for a reported value that can't be pickled; arrives as an empty object of a type of the same name."""

    def __init__(self, value: object) -> None:
        self._type_name = type(value).__name__

    def __reduce__(self) -> tuple[Any, ...]:
        return _stand_in, (self._type_name,)


def _stand_in(type_name: str) -> object:
    return type(type_name, (), {})()
