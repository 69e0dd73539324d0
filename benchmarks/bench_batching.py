"""Batching on the digits example: 16 callers, every image new to them, one image a call against up to 16."""

from __future__ import annotations

import asyncio

import uvloop

from benchmarks._digits import POLICY, uniform
from benchmarks._machine import percentile, table
from benchmarks._serve import contenders, measure

CALLERS = 16
ROUNDS = 3
SECONDS = 2.0
REQUESTS = 20_000
PIPELINES = {"one at a time": "digits_plain", "batched": "digits_batched"}


async def main() -> None:
    """Measure and print."""
    bodies = uniform(REQUESTS)
    rows: list[tuple[str, ...]] = []
    async with contenders("_digits", PIPELINES) as found:
        await measure(found, bodies, rounds=ROUNDS, seconds=SECONDS, connections=CALLERS)
        base = found["one at a time"].best
        for name, contender in found.items():
            alone = {name: type(contender)(contender.port, contender.process)}
            await measure(alone, bodies, rounds=1, seconds=SECONDS / 2, connections=1)
            rows.append(
                (
                    name,
                    f"{contender.best:.0f}",
                    f"{contender.best / base:.2f}",
                    f"{percentile(contender.latencies, 50) * 1000:.2f}",
                    f"{percentile(contender.latencies, 99) * 1000:.2f}",
                    f"{percentile(alone[name].latencies, 50) * 1000:.2f}",
                )
            )
    table(
        f"digits example, {CALLERS} callers, batches of up to {POLICY.max_size}, best of {ROUNDS} rounds",
        ("", "requests/s", "ratio", "p50 ms", "p99 ms", "p50 ms, one caller"),
        rows,
    )


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
