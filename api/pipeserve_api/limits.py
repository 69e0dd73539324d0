"""How often each caller may call: requests a minute and runs a day, over all replicas together.

The store counts. While it is away, or takes too long to say, each process counts for itself: a limit must not make a
service fail that could answer. A caller without limits costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeserve.errors import RateLimitedError, StoreUnavailableError
from pipeserve.runtime.memory.limits import MemoryLimits
from pipeserve.runtime.ports import Budget, Limits, Spent, Verdict
from pipeserve.settings import ServiceSettings
from pipeserve_api.callers import Caller, caller_in
from pipeserve_api.problems import error_response

PATIENCE = 0.25
"""Seconds that a request waits for the store's word."""
_TELL_EVERY = 30.0
_REQUESTS, _RUNS = "requests", "runs"
_MINUTE, _DAY = 60.0, 86_400.0

_log = logging.getLogger(__name__)


class _SpentError(RateLimitedError):
    """A budget is spent; :attr:`spent` is what the answer tells of it."""

    def __init__(self, detail: str, *, retry_after: float, spent: Sequence[Spent]) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.spent = spent


class CallLimits:
    """The limits of one process's callers. What a key says of itself goes before what the settings say of all."""

    def __init__(self, limits: Limits, settings: ServiceSettings) -> None:
        self._limits = limits
        self._settings = settings
        self._local = MemoryLimits(time.time)
        self._told = -math.inf

    async def request(self, caller: Caller) -> Sequence[Spent]:
        """Count a request; what is left then, where there is a limit. Raises RateLimitedError."""
        size = caller.requests_per_minute or self._settings.requests_per_minute
        return () if size is None else await self._spend(caller, Budget(_REQUESTS, size, _MINUTE), 1)

    async def runs(self, caller: Caller, number: int = 1) -> None:
        """Count runs that are about to start. Raises RateLimitedError: none of them may."""
        size = caller.runs_per_day or self._settings.runs_per_day
        if size is not None and number > 0:
            await self._spend(caller, Budget(_RUNS, size, _DAY), number)

    async def give_back(self, caller: Caller, number: int = 1) -> None:
        """What was counted by :meth:`runs` and then did not start."""
        size = caller.runs_per_day or self._settings.runs_per_day
        if size is not None and number > 0:
            await self._spend(caller, Budget(_RUNS, size, _DAY), -number)

    async def _spend(self, caller: Caller, budget: Budget, amount: int) -> Sequence[Spent]:
        verdict = await self._verdict(caller, budget, amount)
        if not verdict.allowed:
            unit = "a minute" if budget.name == _REQUESTS else "a day"
            seconds = max(math.ceil(verdict.wait), 1)
            detail = f"More than {budget.size} {budget.name} {unit}. Try again in {seconds} s."
            raise _SpentError(detail, retry_after=seconds, spent=verdict.spent)
        return verdict.spent

    async def _verdict(self, caller: Caller, budget: Budget, amount: int) -> Verdict:
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._limits.spend(caller.name, [budget], amount)
        except (StoreUnavailableError, TimeoutError):
            now = time.monotonic()
            if now - self._told >= _TELL_EVERY:
                self._told = now
                _log.warning("the store does not count calls; each process counts its own")
            return await self._local.spend(caller.name, [budget], amount)


class LimitsMiddleware:
    """Counts requests and WebSocket handshakes of known callers, and says with each answer what is left."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan" or scope["path"].startswith("/health"):
            await self._app(scope, receive, send)
            return
        limits: CallLimits = scope["state"]["services"].limits
        try:
            spent = await limits.request(caller_in(scope))
        except _SpentError as error:
            response = error_response(error, instance=scope["path"])
            await response(scope, receive, _telling(send, error.spent))
        else:
            await self._app(scope, receive, _telling(send, spent) if spent else send)


def _telling(send: Send, spent: Sequence[Spent]) -> Send:
    """Adds the fields of draft-ietf-httpapi-ratelimit-headers."""
    policy = ", ".join(f'"{one.budget.name}";q={one.budget.size};w={one.budget.seconds:.0f}' for one in spent)
    left = ", ".join(f'"{one.budget.name}";r={one.left};t={math.ceil(one.refill)}' for one in spent)
    headers = [(b"ratelimit-policy", policy.encode()), (b"ratelimit", left.encode())]

    async def telling(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return telling
