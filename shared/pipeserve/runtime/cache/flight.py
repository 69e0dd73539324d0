"""``Flight``: one computation under way, for all who want its result.

Who waits is counted. A waiter that gives up leaves the others alone; only when the last one has left is the flight
abandoned, and its computation should stop.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable
from copy import deepcopy
from types import TracebackType
from typing import Any

from pipeserve.runtime.cache.canonical.encoding import kind_of, type_name
from pipeserve.runtime.cache.key import CacheKey
from pipeserve.sdk.cache import Cache

_log = logging.getLogger(__name__)

Callback = Callable[[], object]


class NotCopiedError(Exception):
    """The result of an equal call can't be deep-copied, as ``Cache(copy=True)`` asks: one must compute it oneself."""


NOT_COPIED = object()
"""In the place of a copy that could not be made."""


def deep_copy(value: Any) -> Any:
    """A deep copy of ``value``, or NOT_COPIED."""
    try:
        return deepcopy(value)
    except Exception:  # whatever the author's __deepcopy__, __reduce__ or constructor raises: there is no copy
        return NOT_COPIED


class Flight:
    """One computation. Whoever leads it counts as its first waiter. Thread-safe."""

    __slots__ = (
        "_abandoned",
        "_done",
        "_error",
        "_joined",
        "_latest",
        "_lock",
        "_on_abandoned",
        "_on_done",
        "_shared",
        "_traceback",
        "_value",
        "_waiting",
        "key",
        "policy",
        "seconds",
        "step",
    )

    def __init__(self, step: str, key: CacheKey, policy: Cache) -> None:
        self.step = step
        self.key = key
        self.policy = policy
        self.seconds = 0.0
        """How long the computation took, once it has succeeded."""
        self._lock = threading.Lock()
        self._waiting = 1
        self._latest = -math.inf
        self._joined = self._done = self._abandoned = False
        self._value: Any = None
        self._shared: Any = None
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._on_done: dict[object, Callback] = {}
        self._on_abandoned: dict[object, Callback] = {}

    @property
    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self._done

    @property
    def abandoned(self) -> bool:
        """Whether all left before it was done: the computation should stop at its next checkpoint."""
        return self._abandoned

    @property
    def latest(self) -> float:
        """The latest deadline, by ``time.monotonic()``, of those who have said when they stop to wait."""
        return self._latest

    def wait_until(self, deadline: float) -> None:
        """Who leads or has joined waits until ``deadline`` at most."""
        with self._lock:
            self._latest = max(self._latest, deadline)

    def join(self) -> bool:
        """Wait too; ``leave`` when giving up. False: it is abandoned, and nobody can wait any more."""
        with self._lock:
            if self._abandoned:
                return False
            self._waiting += 1
            self._joined = True
            return True

    def leave(self) -> bool:
        """Wait no more. True: nobody is left."""
        with self._lock:
            if self._waiting == 0:
                raise RuntimeError("leave() was called more often than join()")
            self._waiting -= 1
            if self._waiting or self._done:
                return not self._waiting
            self._abandoned = True
            callbacks = list(self._on_abandoned.values())
            self._on_abandoned.clear()
        _call(callbacks)
        return True

    def on_done(self, callback: Callback) -> Callable[[], None]:
        """Call ``callback`` once there is a result or an error: from the thread that has it, or now if it is there.

        Returns what takes that back.
        """
        with self._lock:
            if not self._done:
                return _added(self._on_done, callback)
        callback()
        return _nothing

    def on_abandoned(self, callback: Callback) -> Callable[[], None]:
        """Call ``callback`` once all have left: from the thread of the last, or now if they have.

        Returns what takes that back.
        """
        with self._lock:
            if not self._abandoned:
                return _added(self._on_abandoned, callback)
        callback()
        return _nothing

    def result(self, *, leads: bool = False) -> Any:
        """The value; or the computation's error is raised. Only for a flight that is done.

        If its policy says ``copy``, each call gives another deep copy, and raises NotCopiedError where there can be
        none. Whoever computed the value gets that itself: with ``leads``, or if nobody else has joined.
        """
        if not self._done:
            raise RuntimeError("this flight is not done")
        if self._error is not None:
            # With the traceback that it came with: raised in several threads, it would grow by those of all.
            raise self._error.with_traceback(self._traceback)
        if leads or not self.policy.copy or not self._joined:
            return self._value
        copy = NOT_COPIED if self._shared is NOT_COPIED else deep_copy(self._shared)
        if copy is NOT_COPIED:
            kind = type_name(kind_of(self._value))
            raise NotCopiedError(f"step {self.step!r}: its result, a {kind}, can't be deep-copied")
        return copy

    def succeed(self, value: Any, shared: Any, seconds: float) -> None:
        """It is done (:meth:`StepCache.complete` calls this).

        ``shared``: what those who joined get, or copies of it; NOT_COPIED: nothing.
        """
        self._finish(value, shared, None, seconds)

    def fail(self, error: BaseException) -> None:
        """It has failed (:meth:`StepCache.fail` calls this)."""
        self._finish(None, None, error, 0.0)

    def _finish(self, value: Any, shared: Any, error: BaseException | None, seconds: float) -> None:
        with self._lock:
            if self._done:
                return
            self._value, self._shared, self._error, self.seconds = value, shared, error, seconds
            self._traceback = None if error is None else error.__traceback__
            self._done = True
            callbacks = list(self._on_done.values())
            self._on_done.clear()
            self._on_abandoned.clear()
        _call(callbacks)


def _added(callbacks: dict[object, Callback], callback: Callback) -> Callable[[], None]:
    token = object()
    callbacks[token] = callback

    def remove() -> None:
        callbacks.pop(token, None)

    return remove


def _nothing() -> None:
    pass


def _call(callbacks: Iterable[Callback]) -> None:
    for callback in callbacks:
        try:
            callback()
        except Exception:  # one waiter's loop may be closed by now; the others must hear all the same
            _log.exception("a waiter for a step's result could not be told")
