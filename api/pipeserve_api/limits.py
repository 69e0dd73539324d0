"""How often each caller may call: requests a minute and runs a day, over all replicas together.

The store counts. While it is away, or takes too long to say, each process counts for itself: a limit must not make a
service fail that could answer. A caller without limits costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Self

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeserve.errors import ProblemError, RateLimitedError, StoreUnavailableError
from pipeserve.runtime.memory.limits import MemoryLimits
from pipeserve.runtime.ports import Budget, Limits, Spent, Verdict
from pipeserve.settings import ServiceSettings
from pipeserve_api.callers import Caller, caller_in
from pipeserve_api.paths import is_probe
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


class Charge:
    """Runs that are counted before ``async with`` begins them. Entering raises RateLimitedError: none may start.

    What the block says did not start is given back, and all of them if it raises a ProblemError. A class, because a
    generator would cost a call that has no limit more than all else in here.
    """

    __slots__ = ("_number", "_spend", "unstarted")

    def __init__(self, spend: Callable[[int], Awaitable[object]] | None, number: int) -> None:
        self._spend = spend
        self._number = number
        self.unstarted = 0
        """How many of them turned out to be there already, or were refused."""

    async def __aenter__(self) -> Self:
        if self._spend is not None:
            await self._spend(self._number)
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if self._spend is None:
            return
        unstarted = self._number if isinstance(error, ProblemError) else self.unstarted
        if unstarted:
            await self._spend(-unstarted)


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

    def runs(self, caller: Caller, number: int = 1) -> Charge:
        """Counts runs that start within ``async with``."""
        size = caller.runs_per_day or self._settings.runs_per_day
        if size is None or number == 0:
            return Charge(None, number)
        return Charge(partial(self._spend, caller, Budget(_RUNS, size, _DAY)), number)

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
        if scope["type"] == "lifespan" or is_probe(scope):
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
