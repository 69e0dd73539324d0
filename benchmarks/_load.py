"""A load generator that costs little: raw keep-alive sockets, requests made once, replies not parsed beyond length."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast


@dataclass(frozen=True, slots=True)
class Load:
    """What one round measured. Latencies are in seconds."""

    requests_per_second: float
    latencies: list[float]


class _Connection(asyncio.Protocol):
    """One request after another on one socket."""

    def __init__(self, requests: Iterator[bytes], until: float, done: asyncio.Future[list[float]]) -> None:
        self._requests = requests
        self._until = until
        self._done = done
        self._buffer = b""
        self._latencies: list[float] = []
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        lower = head.lower()
        start = lower.index(b"content-length:") + 15
        length = int(lower[start:].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self._buffer = b""
        if not head.startswith(b"HTTP/1.1 200"):
            self._end(RuntimeError((head + b"\n\n" + body).decode(errors="replace")))
            return
        now = time.perf_counter()
        self._latencies.append(now - self._sent)
        if now < self._until:
            self._send()
        else:
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionError("closed by the server"))

    def _end(self, error: Exception | None) -> None:
        if not self._done.done():
            if error is None:
                self._done.set_result(self._latencies)
            else:
                self._done.set_exception(error)
        self._transport.close()


def _request(body: bytes, headers: bytes) -> bytes:
    return (
        b"POST /invoke HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n%b"
        b"Content-Length: %d\r\n\r\n%b" % (headers, len(body), body)
    )


async def load(
    port: int, body: bytes | Sequence[bytes], *, seconds: float, connections: int, headers: bytes = b""
) -> Load:
    """POST ``body`` to ``/invoke`` over and over; of several each in turn, dealt out to the connections.

    ``headers``: further ones, each with its line's end.

    Raises RuntimeError with the reply of the first failed request.
    """
    loop = asyncio.get_running_loop()
    bodies = [body] if isinstance(body, bytes) else body
    requests = {text: _request(text, headers) for text in set(bodies)}
    hands = [[requests[text] for text in bodies[at % len(bodies) :: connections]] for at in range(connections)]
    started = time.perf_counter()
    futures = [loop.create_future() for _ in range(connections)]
    for future, hand in zip(futures, hands, strict=True):
        await loop.create_connection(
            lambda future=future, hand=hand: _Connection(itertools.cycle(hand), started + seconds, future),
            "127.0.0.1",
            port,
        )
    results: list[list[float]] = await asyncio.gather(*futures)
    elapsed = time.perf_counter() - started
    latencies = [latency for result in results for latency in result]
    return Load(len(latencies) / elapsed, latencies)
