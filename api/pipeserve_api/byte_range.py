"""The part of a file that a request asks for (RFC 9110, section 14), and whether it has the file already."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.datastructures import Headers

# No file has a size of more digits, and Python reads no number of more than 4300.
_ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE | re.ASCII)


class UnsatisfiableError(ValueError):
    """The range that was asked for begins after the end."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """From ``start`` to before ``stop``, of ``size`` bytes."""

    start: int
    stop: int
    size: int

    @property
    def content_range(self) -> str:
        """The header of a 206."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


def wanted_range(headers: Headers, *, size: int, etag: str) -> ByteRange | None:
    """The one range that a request asks for. None: the whole file, also where it asks for several, or for an older one.

    Raises UnsatisfiableError.
    """
    found = _ONE_RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if found is None or headers.get("if-range", etag) != etag or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if first == "":
        start, stop = max(size - int(last), 0), size
    else:
        start, stop = int(first), size if last == "" else min(int(last) + 1, size)
        if last != "" and int(last) < start:
            return None  # not a range at all
    if start >= size:
        raise UnsatisfiableError
    return ByteRange(start, stop, size)


def has_it(headers: Headers, etag: str) -> bool:
    """Whether the caller says that it has the file with this tag."""
    tags = [tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")]
    return etag in tags or tags == ["*"]
