"""Puts something of ours in the place of an attribute of a module or class, for a while.

Several runtimes of one process do so at the same time, and end in any order. Each finds what the one before has put
there, so the replacements form a chain. One that is taken out while it is not the last stays in the chain until those
after it are gone; it must then do nothing but pass on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MARK = "_pipeserve_patch"


class Patch:
    """While entered, ``make(original)`` stands in the place of ``holder.name``."""

    def __init__(self, holder: Any, name: str, make: Callable[[Any], Any]) -> None:
        """What ``make`` returns must have attributes: it is marked as ours."""
        self._holder = holder
        self._name = name
        self._make = make
        self._original: Any = None
        self._replacement: Any = None
        self._over = False

    def __enter__(self) -> Patch:
        self._original = getattr(self._holder, self._name)
        self._replacement = self._make(self._original)
        vars(self._replacement)[_MARK] = self
        setattr(self._holder, self._name, self._replacement)
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        while (last := self._last()) is not None and last._over:
            setattr(self._holder, self._name, last._original)

    def _last(self) -> Patch | None:
        """The patch that stands there now; None: something of others, which may have copied our mark."""
        current = getattr(self._holder, self._name)
        found = getattr(current, "__dict__", {}).get(_MARK)
        return found if isinstance(found, Patch) and found._replacement is current else None
