"""Many readers of Server-Sent Events in a process of their own, on raw sockets: ``port path path …``, a path each.

It prints ``ready`` once each has its first block, and at the end one line of JSON: how many events came, and how long
after they were made (each says when, in ``"value"``, in nanoseconds of the machine's monotonic clock).
"""

from __future__ import annotations

import asyncio
import sys
import time
from array import array
from typing import cast

import orjson
import uvloop

AT_ONCE = 50
"""Connections that are being opened at the same time."""
_MARK = b'"value":'
_EVENT = b"event: output\n"


class Reader(asyncio.Protocol):
    """One stream."""

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop, latencies: array[float]) -> None:
        self.opened: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.events = 0
        self._path = path
        self._latencies = latencies
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._transport.write(f"GET {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            self._rest += data
            if b"\n\n" not in self._rest:
                return
            data, self._rest = self._rest, b""
            if not data.startswith(b"HTTP/1.1 200"):
                self.opened.set_exception(RuntimeError(data.decode(errors="replace")))
                return
            self.opened.set_result(None)
        data = self._rest + data
        *blocks, self._rest = data.split(b"\n\n")
        now = time.monotonic_ns()
        for block in blocks:
            if _EVENT in block:
                self.events += 1
                start = block.index(_MARK) + len(_MARK)
                self._latencies.append((now - int(block[start : block.index(b",", start)])) / 1e9)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("closed by the server"))
        if not self.ended.done():
            self.ended.set_result(None)


async def main(port: int, paths: list[str]) -> None:
    """Read all to their ends."""
    loop = asyncio.get_running_loop()
    latencies = array("d")
    readers = [Reader(path, loop, latencies) for path in paths]
    for start in range(0, len(readers), AT_ONCE):
        some = readers[start : start + AT_ONCE]
        await asyncio.gather(*(loop.create_connection(lambda one=one: one, "127.0.0.1", port) for one in some))
        await asyncio.gather(*(reader.opened for reader in some))
    print("ready", flush=True)
    await asyncio.gather(*(reader.ended for reader in readers))
    ordered = sorted(latencies)
    told = {
        "events": [reader.events for reader in readers],
        "p50": ordered[len(ordered) // 2],
        "p95": ordered[len(ordered) * 95 // 100],
    }
    print(orjson.dumps(told).decode(), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), sys.argv[2:]))
