"""Text that is written piece by piece becomes lines, and a line that is too long is cut.

A step may print a gigabyte without one line end: of an open line no more is held than is kept of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

LONGEST = 16_384
"""Bytes of one line of log text that are kept."""

_LINE_END = re.compile(r"[\r\n]")  # one character: a search for one of two or three takes four times as long


class OpenLine:
    """What one thread has written to one stream since its last line end. Not thread-safe."""

    __slots__ = ("_blank", "_parts", "_returned", "_size", "passed_on")

    def __init__(self, passed_on: Callable[[str], object] | None = None) -> None:
        """``passed_on`` takes each whole line, with its end; None: its text has gone on already."""
        self.passed_on = passed_on
        self._parts: list[str] = []
        self._size = 0
        self._returned = False  # the last character was a carriage return that ended a line, and "\n" may follow
        self._blank = False  # that carriage return has ended no line yet

    def take(self, text: str, start: int) -> tuple[str | None, int]:
        """Read ``text`` from ``start`` on, up to the next line end.

        Returns the line that has ended (None: none has) and where the next one starts. A carriage return ends a line
        too, as progress bars use it; one that is followed by nothing but itself ends none.
        """
        if self._returned:
            self._returned = False
            if text.startswith("\n", start):
                start += 1
                if self._blank:
                    return "", start
        end = _LINE_END.search(text, start)
        if end is None:
            self._add(text, start, len(text))
            return None, len(text)
        self._add(text, start, end.start())
        line, after = self.rest(), end.end()
        if end.group() == "\n":
            return line, after
        if text.startswith("\n", after):
            return line, after + 1
        self._returned, self._blank = after == len(text), not line
        return line or None, after

    def rest(self) -> str:
        """What there is without a line end; it is taken out."""
        line = "".join(self._parts)
        self._parts, self._size = [], 0
        return line

    def _add(self, text: str, start: int, stop: int) -> None:
        stop = min(stop, start + LONGEST + 1 - self._size)  # one more than is kept: so a cut shows
        if stop > start:
            self._parts.append(text[start:stop])
            self._size += stop - start


def shortened(message: str) -> tuple[str, bool]:
    """As much of ``message`` as is kept of one line, in text that UTF-8 can carry, and whether something was cut."""
    kept = message[: LONGEST + 1].encode("utf-8", "replace")
    if len(kept) <= LONGEST:
        return kept.decode(), False
    return kept[:LONGEST].decode("utf-8", "ignore") + "…", True
