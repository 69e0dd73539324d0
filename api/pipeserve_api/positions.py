"""Where a reader is: the number of an event, or in a stream of several jobs the numbers of all of them.

A composite position fits one list of jobs only, in its order. It carries a digest of that list: taken to another one,
it would skip events in silence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pydantic import JsonValue

from pipeserve.errors import BadRequestError

_DIGITS = 15
_TAG_LENGTH = 6
NUMBER: dict[str, JsonValue] = {"pattern": f"^[0-9]{{0,{_DIGITS}}}$"}
"""What :func:`event_number` takes, for the API's description."""


def event_number(text: str | None) -> int | None:
    """The position in one job's log; None: none was sent. Raises BadRequestError."""
    if not text:
        return None
    if not _is_number(text):
        raise BadRequestError(f"A position is the number of an event (its SSE id), not {text[:40]!r}.")
    return int(text)


class Positions:
    """The numbers of the last events that a reader has of ``job_ids``, in their order: ``<tag>:<n>.<n>.<n>``."""

    __slots__ = ("_prefix", "numbers")

    def __init__(self, job_ids: Sequence[str], numbers: Sequence[int] | None = None) -> None:
        self._prefix = f"{_tag(job_ids)}:"
        self.numbers = [0] * len(job_ids) if numbers is None else list(numbers)

    @classmethod
    def read(cls, text: str | None, job_ids: Sequence[str]) -> Positions | None:
        """What :meth:`__str__` gave for the same jobs; None: none was sent. Raises BadRequestError."""
        if not text:
            return None
        tag, _, rest = text.partition(":")
        numbers = rest.split(".")
        if tag != _tag(job_ids) or len(numbers) != len(job_ids) or not all(map(_is_number, numbers)):
            raise BadRequestError(
                f"The position {text[:40]!r} is none of these {len(job_ids)} jobs in this order. "
                "Repeat the request with the same jobs, or without a position."
            )
        return cls(job_ids, [int(number) for number in numbers])

    def __str__(self) -> str:
        return self._prefix + ".".join(map(str, self.numbers))


def _tag(job_ids: Sequence[str]) -> str:
    return hashlib.sha256(",".join(job_ids).encode()).hexdigest()[:_TAG_LENGTH]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS
