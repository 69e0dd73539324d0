"""Makes one POST to a receiver, within bounds whatever the receiver does.

httpcore, not httpx on top of it: what a sender must not do (follow a redirect, take a proxy or a password from the
environment, keep cookies, unpack an answer) is then not switched off but not there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Self

import httpcore
import httpx

from pipeserve.webhooks.connections import CheckedConnections, Resolve, resolve
from pipeserve.webhooks.receivers import ReceiverRefusedError, Receivers

MAX_ANSWER_BYTES = 65_536
"""Of an answer's body that are read, so that the connection can be used again; more closes it."""

_MAX_ERROR_LENGTH = 200
"""Characters of an error: a library's message can quote all that the receiver has sent, and it goes to the record."""
_ANSWER_SECONDS = 1.0  # for the body, which nobody looks at; the status has come before
_KEEPALIVE_SECONDS = 2.0  # below the 5 s after which many servers close, so that none does so under a new request


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one POST."""

    status_code: int | None
    """None: there was no answer."""
    error: str | None
    """Why the try failed, in words; None: it did not."""
    retry_after: float | None
    """Seconds for which the receiver has asked to wait."""
    duration: float
    """Seconds."""


class Sender:
    """An HTTP client for receivers. An async context manager."""

    def __init__(
        self,
        receivers: Receivers,
        timeout: float,
        *,
        user_agent: str = "pipeserve",
        connections: int = 16,
        look_up: Resolve = resolve,
    ) -> None:
        """``timeout``: seconds that a receiver has for its answer, from the look-up of its name on."""
        self._timeout = timeout
        self._user_agent = user_agent.encode()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=connections,
            keepalive_expiry=_KEEPALIVE_SECONDS,
            network_backend=CheckedConnections(receivers, look_up),
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._pool)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """POST ``body``, a JSON document. Never raises for what a receiver does."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout) as limit:
                status, retry_after = await self._exchange(url, headers, body, limit)
            error = None if 200 <= status < 300 else _refusal(status)
            return Answer(status, error, retry_after, time.monotonic() - began)
        except (TimeoutError, httpcore.TimeoutException):
            error = f"no answer within {self._timeout:g} s"
        except ReceiverRefusedError as refused:
            error = str(refused)
        except httpcore.ConnectError as failure:
            error = f"no connection: {failure}"
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as failure:
            error = f"the connection broke: {failure or type(failure).__name__}"
        except (httpx.InvalidURL, httpcore.UnsupportedProtocol, ValueError) as failure:
            error = f"the URL can't be used: {failure}"
        return Answer(None, error[:_MAX_ERROR_LENGTH], None, time.monotonic() - began)

    async def _exchange(
        self, url: str, headers: Mapping[str, str], body: bytes, limit: asyncio.Timeout
    ) -> tuple[int, float | None]:
        """The answer's status, and its ``Retry-After`` in seconds."""
        sent = [
            # httpcore's own has an IPv6 address without its brackets.
            (b"Host", httpx.URL(url).netloc),
            (b"Accept", b"*/*"),
            (b"User-Agent", self._user_agent),
            (b"Content-Type", b"application/json"),
            *((name.encode(), value.encode()) for name, value in headers.items()),
        ]
        request = self._pool.stream(
            "POST", _target(url), headers=sent, content=body, extensions={"timeout": {"connect": self._timeout}}
        )
        async with request as response:
            limit.reschedule(None)  # the answer is known
            await _read_away(response)
            return response.status, _retry_after(response.headers)


def _target(url: str) -> httpcore.URL:
    parts = httpx.URL(url)
    return httpcore.URL(scheme=parts.raw_scheme, host=parts.raw_host, port=parts.port, target=parts.raw_path)


async def _read_away(response: httpcore.Response) -> None:
    """Read the body if it is short and comes at once. Nothing in it, and no failure of it, changes the answer."""
    left = MAX_ANSWER_BYTES
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            async for part in response.aiter_stream():
                left -= len(part)
                if left < 0:
                    return
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError):
        pass


def _refusal(status: int) -> str:
    if 300 <= status < 400:
        return f"the receiver answered {status}; redirects are not followed"
    return f"the receiver answered {status}"


def _retry_after(headers: list[tuple[bytes, bytes]]) -> float | None:
    """Seconds: the header has those, or a date."""
    for name, value in headers:
        if name.lower() == b"retry-after":
            text = value.decode("ascii", "replace").strip()
            if text.isascii() and text.isdigit():
                return float(text[:9])
            try:
                moment = parsedate_to_datetime(text)
                return max(0.0, moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - time.time())
            except (ValueError, OverflowError):
                return None
    return None
