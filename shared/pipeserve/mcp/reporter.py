"""Tells the caller of a tool how far its job is, and what its steps log, while the call is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp_types import LoggingLevel, LoggingMessageNotification, LoggingMessageNotificationParams

from pipeserve.events import Event, EventType

_STEP_ENDS = frozenset({EventType.STEP_COMPLETED, EventType.STEP_FAILED})
_WHOLE = 100.0
_NUDGE = 0.001
"""Percent. MCP asks that progress grows with each notification, also with one that only names another step."""
_PAUSE = 0.05
"""Seconds between two reports of a dynamic pipeline, which may call thousands of steps."""
_LEVELS: dict[str, LoggingLevel] = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "critical": "critical",
}


class Reporter:
    """One call's notifications. ``levels``: of which log lines are sent."""

    def __init__(
        self, context: ServerRequestContext[Any, Any], total_steps: int | None, levels: Collection[LoggingLevel]
    ) -> None:
        self._context = context
        self._total = total_steps
        self._levels = levels
        self._running: dict[str, None] = {}  # in the order in which they started
        self._completed = 0
        self._percent = 0.0
        self._note: str | None = None
        self._said: tuple[float, str] | None = None
        self._said_at = 0.0
        self.visualizations = 0
        """How many the job has drawn so far."""

    async def tell(self, event: Event) -> None:
        """Notify the caller of ``event``, if there is something to say."""
        match event.event_type:
            case EventType.LOG:
                await self._log(event)
            case EventType.VISUALIZATION:
                self.visualizations += 1
            case EventType.PROGRESS_UPDATE:
                self._update(event)
                await self._report()
            case EventType.STEP_STARTED | EventType.STEP_COMPLETED | EventType.STEP_FAILED:
                self._step(event)
                await self._report()
            case EventType.ATTEMPT_LOST:
                self._running.clear()
                self._completed, self._note = 0, None
            case _:
                pass

    def _step(self, event: Event) -> None:
        name, self._note = event.step_name or "?", None
        if event.event_type in _STEP_ENDS:
            self._running.pop(name, None)
            self._completed += event.event_type is EventType.STEP_COMPLETED
        else:
            self._running[name] = None

    def _update(self, event: Event) -> None:
        data: dict[str, Any] = event.data or {}
        self._completed = max(self._completed, int(data.get("current_step", 0)))
        self._percent = max(self._percent, float(data.get("percent", 0.0)))
        self._note = event.message

    async def _report(self) -> None:
        """Progress counts percent of a static pipeline, and completed steps of a dynamic one."""
        now = asyncio.get_running_loop().time()
        if self._total is None and self._said is not None and now - self._said_at < _PAUSE:
            return
        value, message = self._value(), self._message()
        if self._said is not None:
            before, said = self._said
            if value <= before:
                if message == said:
                    return
                value = round(before + _NUDGE, 3)
            if self._total and value > _WHOLE:
                return
        self._said, self._said_at = (value, message), now
        await self._context.session.report_progress(value, _WHOLE if self._total else None, message)

    def _value(self) -> float:
        if not self._total:
            return float(self._completed)
        return max(self._percent, min(_WHOLE, round(_WHOLE * self._completed / self._total, 1)))

    def _message(self) -> str:
        done = f"{self._completed} of {self._total} steps" if self._total else f"{self._completed} steps done"
        running = f": {', '.join(self._running)}" if self._running else ""
        return f"{done}{running}" + (f" ({self._note})" if self._note else "")

    async def _log(self, event: Event) -> None:
        level = _LEVELS.get(event.level or "info", "info")
        if level not in self._levels:
            return
        params = LoggingMessageNotificationParams(level=level, logger=event.step_name, data=event.message or "")
        await self._context.session.send_notification(
            LoggingMessageNotification(params=params), related_request_id=self._context.request_id
        )
