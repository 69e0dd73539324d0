"""What one run tells whoever follows it: events, log lines within a budget, drawings; with nothing masked in them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from pipeserve.errors import Problem
from pipeserve.events import Event, EventType, clean_text
from pipeserve.runtime.capture.log_budget import LogBudget, Verdict
from pipeserve.runtime.capture.veil import Veil
from pipeserve.runtime.capture.visuals import MOST, MOST_BYTES, Rendered, VisualBudget, render
from pipeserve.runtime.failures import words_of
from pipeserve.runtime.ports import Attachment
from pipeserve.runtime.run import EventSink
from pipeserve.runtime.values.encoding import NotJsonError, to_json
from pipeserve.runtime.values.materializers import Materializers
from pipeserve.sdk.capture import Capture

_LONGEST_NAME = 200  # characters of a drawing's name


@dataclass(frozen=True, slots=True)
class Telling:
    """How the runs of one runtime tell of themselves."""

    capture: Capture
    log_limit: int
    materializers: Materializers

    @property
    def draws(self) -> bool:
        """Whether what steps show is kept."""
        return self.capture.visualizations and not self.capture.memory_only


class Teller:
    """Of one run. Thread-safe."""

    def __init__(self, telling: Telling, job_id: str, attempt: int, sink: EventSink | None, veil: Veil | None) -> None:
        self.veil = veil
        """None: nothing of this run is masked."""
        self.draws = sink is not None and telling.draws
        """Whether what steps show is drawn."""
        self._telling = telling
        self._job_id = job_id
        self._attempt = attempt
        self._sink = sink
        self._lock = threading.Lock()
        self._logs: LogBudget | None = None
        self._visuals = VisualBudget() if self.draws else None

    def tell(
        self,
        event_type: EventType,
        step_name: str | None,
        data: Any,
        level: str | None = None,
        message: str | None = None,
        error: Problem | None = None,
    ) -> bool | None:
        """Tell of something. False: no more of its kind is kept."""
        if event_type is EventType.LOG:
            return self._log(step_name, data, level, message or "")
        if event_type is EventType.METADATA and not self._telling.capture.metadata:
            return None
        if event_type in (EventType.OUTPUT, EventType.METADATA):
            if self.veil is not None and event_type is EventType.OUTPUT:
                self.veil.emitted(step_name, data["value"])
            told = _told(data, self._telling.materializers)  # now: the step may change the value after
            data = orjson.Fragment(told) if self.veil is None else told
        self._send(event_type, step_name, data, level, message, error)
        return None

    def show(self, step_name: str | None, value: Any, name: str | None) -> None:
        """Draw ``value`` now, keep it and tell of it."""
        visuals = self._visuals
        if visuals is None:
            return
        name = clean_text(str(name or step_name or "pipeline"))[:_LONGEST_NAME]
        if visuals.full:
            self._say_full(step_name)
            return
        try:
            rendered = render(value)
        except Exception as error:  # whatever a library or the author's class raises: to show something fails no run
            words = f"the visualization {name!r} could not be drawn: {type(error).__name__}: {words_of(error)}"
            self._log(step_name, {"logger": "pipeserve"}, "warning", words)
            return
        if self.veil is None:
            self._keep(visuals, step_name, name, rendered)
        else:
            self.veil.when_known(step_name, partial(self._keep, visuals, step_name, name, rendered))

    def end(self) -> None:
        """The run has ended: what is there to say about what it has said."""
        if self.veil is not None:
            self.veil.abandon()
        if self._logs is not None and (count := self._logs.take_dropped()):
            data = {"logger": "pipeserve", "cut": True, "bytes": count}
            self._send(EventType.LOG, None, data, "warning", f"{count} more bytes of logs were not kept", None)

    def _log(self, step_name: str | None, data: dict[str, Any], level: str | None, message: str) -> bool | None:
        if not self._telling.capture.logs:
            return False
        budget = self._budget()
        if "unkept" in data:  # bytes that the step's context has counted, and nothing else
            budget.drop(data["unkept"])
            return False
        verdict = budget.take(message)
        if verdict is Verdict.KEEP:
            self._send(EventType.LOG, step_name, data, level, message, None)
            return None
        if verdict is Verdict.LAST:
            words = f"the logs of this run are cut here: it has written {budget.limit} bytes (PIPESERVE_LOG_LIMIT)"
            self._send(EventType.LOG, step_name, {"logger": "pipeserve", "cut": True}, "warning", words, None)
        return False

    def _budget(self) -> LogBudget:
        with self._lock:
            if self._logs is None:
                self._logs = LogBudget(self._telling.log_limit)
            return self._logs

    def _keep(self, visuals: VisualBudget, step_name: str | None, name: str, rendered: Rendered) -> None:
        data, sink = rendered.data, self._sink
        assert sink is not None
        if self.veil is not None:
            name = self.veil.masks.hide(name)
            if rendered.media_type.startswith("text/"):
                data = self.veil.masks.hide(data.decode()).encode()
        index = visuals.take(len(data))
        if index is None:
            self._say_full(step_name)
            return
        sink.attach(Attachment(index, name, step_name, rendered.media_type, data))
        told = {
            "index": index,
            "name": name,
            "media_type": rendered.media_type,
            "size": len(data),
            "href": f"/jobs/{self._job_id}/visualizations/{index}",
        }
        self._send(EventType.VISUALIZATION, step_name, told, None, None, None)

    def _say_full(self, step_name: str | None) -> None:
        if self._visuals is not None and self._visuals.say_so():
            words = f"not all visualizations are kept: a run may have {MOST} of them, of {MOST_BYTES} bytes in all"
            self._log(step_name, {"logger": "pipeserve"}, "warning", words)

    def _send(
        self,
        event_type: EventType,
        step_name: str | None,
        data: Any,
        level: str | None,
        message: str | None,
        error: Problem | None,
    ) -> None:
        if self._sink is None:
            return
        event = Event(event_type, self._job_id, self._attempt, time.time(), step_name, level, message, data, error)
        if self.veil is None:
            self._sink.send(event)
        else:
            self.veil.tell(event, self._sink.send)


def _told(data: dict[str, Any], materializers: Materializers) -> bytes:
    """``data`` as JSON, with null for each member that has no JSON form, and what type it was."""
    try:
        return to_json(data, materializers)
    except NotJsonError:
        told: dict[str, Any] = {}
        types: dict[str, str] = {}
        for name, value in data.items():
            try:
                told[name] = orjson.Fragment(to_json(value, materializers))
            except NotJsonError as error:
                told[name], types[name] = None, error.type_name
        return to_json({**told, "not_json": types})
