"""Which log lines each client wants. The protocol has two ways to say it: once for a session, or with each request."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, get_args

from mcp.server.connection import allowed_log_levels
from mcp.server.context import ServerRequestContext
from mcp_types import EmptyResult, LoggingLevel, SetLevelRequestParams
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

_LEVELS: tuple[LoggingLevel, ...] = get_args(LoggingLevel)
"""From the least to the most severe."""
_DEFAULT: LoggingLevel = "info"
_MOST_SESSIONS = 1024


class LogLevels:
    """The sessions' levels; those of the newest 1,024 sessions that set one."""

    def __init__(self) -> None:
        self._of_session: OrderedDict[str, LoggingLevel] = OrderedDict()

    async def set(self, context: ServerRequestContext[Any, Any], params: SetLevelRequestParams) -> EmptyResult:
        """Serve ``logging/setLevel``."""
        session = _session(context)
        self._of_session[session] = params.level
        self._of_session.move_to_end(session)
        if len(self._of_session) > _MOST_SESSIONS:
            self._of_session.popitem(last=False)
        return EmptyResult()

    def wanted(self, context: ServerRequestContext[Any, Any]) -> frozenset[LoggingLevel]:
        """The levels whose lines this request's caller is sent."""
        if context.protocol_version in MODERN_PROTOCOL_VERSIONS:
            return allowed_log_levels(context.protocol_version, context.meta)
        lowest = self._of_session.get(_session(context), _DEFAULT)
        return frozenset(_LEVELS[_LEVELS.index(lowest) :])


def _session(context: ServerRequestContext[Any, Any]) -> str:
    """What tells sessions apart: a header over HTTP; on stdio there is one."""
    return "" if context.request is None else context.request.headers.get("mcp-session-id", "")
