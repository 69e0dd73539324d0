"""What one run tells goes through its veil: with its masked values taken out, and not before these are known.

A step with a masked result may print that result before it returns it. So what such a step tells waits until the step
has ended, and then its result is masked in that too. A step that fails has no result: what it told then goes as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from pydantic_core import from_json, to_json

from pipeserve.events import Event, EventType
from pipeserve.runtime.capture.masks import Masks
from pipeserve.sdk.masked_parts import Parts, Whole
from pipeserve.sdk.secret import MASK

_WAITS = frozenset({EventType.LOG, EventType.METADATA, EventType.VISUALIZATION, EventType.STEP_RETRYING})
_MOST_WAITING = 50_000  # of one step; more lines of log than one run keeps


@dataclass(slots=True)
class _Running:
    """A running step with a masked result."""

    whole: bool
    """Whether all of its result is masked, and so all that it emits."""
    yields: Parts | None
    """What is masked of each value that it emits."""
    waiting: list[Callable[[], object]] = field(default_factory=list[Callable[[], object]])
    abandoned: bool = False
    """Whether nothing of it is told any more."""


class Veil:
    """The masks of one run, and what waits for more of them. Thread-safe."""

    def __init__(self) -> None:
        self.masks = Masks()
        self._lock = threading.Lock()
        self._running: dict[str | None, _Running] = {}

    def begin(self, step: str, result: Parts, *, streams: bool) -> None:
        """A step with a masked result begins: what it tells waits. ``streams``: its result is a list of its yields."""
        whole = isinstance(result, Whole)
        yields = result if whole else result.at(("item", 0)) if streams else None
        with self._lock:
            self._running[step] = _Running(whole or isinstance(yields, Whole), yields)

    def end(self, step: str) -> None:
        """It has ended, and :attr:`masks` have its result: what waited goes, in its order."""
        with self._lock:
            running = self._running.pop(step, None)
        for action in () if running is None else running.waiting:
            action()

    def abandon(self) -> None:
        """The run ends without those of its steps that still run: what waits goes, and nothing after it."""
        with self._lock:
            waiting = [action for running in self._running.values() for action in running.waiting]
            for running in self._running.values():
                running.waiting, running.abandoned = [], True
        for action in waiting:
            action()

    def emitted(self, step: str | None, value: Any) -> None:
        """``step`` emits ``value``: hide what is masked of it, before others that read it live can tell of it."""
        running = self._running.get(step)
        if running is not None and running.yields is not None:
            for masked in running.yields.values(value):
                self.masks.add(masked)

    def when_known(self, step: str | None, action: Callable[[], object]) -> None:
        """Call ``action``, which tells something of ``step``, once what it must hide is known: mostly at once."""
        with self._lock:
            running = self._running.get(step)
            if running is not None:
                if len(running.waiting) < _MOST_WAITING and not running.abandoned:
                    running.waiting.append(action)
                return
        action()

    def tell(self, event: Event, send: Callable[[Event], None]) -> None:
        """Send ``event`` with nothing in it that is masked, once that is known.

        The data of ``output`` and ``metadata`` are JSON, as bytes: what the step has made of a value since does not
        count.
        """
        if event.event_type in _WAITS:
            self.when_known(event.step_name, lambda: send(self._hidden(event)))
            return
        running = self._running.get(event.step_name)
        if running is not None and event.event_type is EventType.PROGRESS_UPDATE and event.message is not None:
            event = replace(event, message=MASK)  # it can't wait: it is of now
        elif running is not None and event.event_type is EventType.OUTPUT and running.whole:
            event = replace(event, data=to_json({**from_json(event.data), "value": MASK}))
        send(self._hidden(event))

    def _hidden(self, event: Event) -> Event:
        masks, data = self.masks, event.data
        if event.event_type is EventType.METADATA:
            data = orjson.Fragment(masks.hide_json(data))
        elif event.event_type is EventType.OUTPUT:
            data = orjson.Fragment(masks.hide_json(data, only="value"))
        message = None if event.message is None else masks.hide_cut(event.message)
        error = None if event.error is None else masks.hide_problem(event.error)
        return replace(event, message=message, data=data, error=error)
