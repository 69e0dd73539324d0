"""What keys, limits, an access log and traces cost a synchronous call, against the same service without them.

One API process for each; rounds take turns. Traces go to a collector in this process that reads and forgets them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import uvloop

from benchmarks._machine import percentile, table
from benchmarks._serve import contenders, measure

ROUNDS = 4
SECONDS = 1.5
CONNECTIONS = 8
KEY = "psk_benchmark"
BODY = orjson.dumps({"parameters": {"text": "the quick brown fox jumps over the lazy dog " * 4}})
BASE = "nothing"


def environments(collector: str) -> dict[str, dict[str, str]]:
    """What each service has switched on."""
    key = {"ZENML_SERVING_AUTH_KEY": KEY}
    traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_METRICS_EXPORTER": "none"}
    return {
        BASE: {},
        "a key": key,
        "a key, and a limit of requests": key | {"PIPESERVE_REQUESTS_PER_MINUTE": "100000000"},
        "a key, and limits of requests and runs": key
        | {"PIPESERVE_REQUESTS_PER_MINUTE": "100000000", "PIPESERVE_RUNS_PER_DAY": "1000000000"},
        "an access log, JSON": {
            "PIPESERVE_ACCESS_LOG": "true",
            "PIPESERVE_LOG_FORMAT": "json",
            "ZENML_LOG_LEVEL": "info",
        },
        "traces, 1 % of the calls": traces
        | {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
        "traces of all calls": traces,
    }


@asynccontextmanager
async def forgetful_collector() -> AsyncIterator[str]:
    """The URL of an HTTP server that takes everything."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def main() -> None:
    """Measure and print."""
    async with forgetful_collector() as collector:
        options = environments(collector)
        async with contenders("_pipelines", dict.fromkeys(options, "word_counts_in_memory"), options) as found:
            await measure(
                found,
                [BODY],
                rounds=ROUNDS,
                seconds=SECONDS,
                connections=CONNECTIONS,
                headers=b"Authorization: Bearer %s\r\n" % KEY.encode(),
            )
    base = found[BASE]
    table(
        f"POST /invoke, two steps, memory_only, {CONNECTIONS} connections, {ROUNDS} rounds of {SECONDS:g} s",
        ("with", "requests/s", "ratio", "CPU µs each", "more", "p50 ms", "p99 ms"),
        [
            (
                name,
                f"{one.best:.0f}",
                f"{one.best / base.best:.2f}",
                f"{one.cost * 1e6:.0f}",
                f"{(one.cost - base.cost) * 1e6:+.0f}",
                f"{percentile(one.latencies, 50) * 1000:.2f}",
                f"{percentile(one.latencies, 99) * 1000:.2f}",
            )
            for name, one in found.items()
        ],
    )


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
