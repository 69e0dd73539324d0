"""The step cache on the digits example: 16 callers, images asked for by Zipf's law, with the cache and without.

Few images are asked for often and most of them rarely, as in many catalogues and logs; a process keeps 256 results of
the 1,797 possible ones. Equal calls at the same time count as hits: they are computed once.
"""

from __future__ import annotations

import asyncio

import uvloop

from benchmarks._digits import zipfian
from benchmarks._machine import percentile, table
from benchmarks._serve import contenders, measure

CALLERS = 16
ROUNDS = 3
SECONDS = 2.0
EXPONENT = 1.0
REQUESTS = 50_000
PIPELINES = {
    "without the cache": "digits_plain",
    "with it": "digits_cached",
    "with it, and batched": "digits_both",
}


async def main() -> None:
    """Measure and print."""
    async with contenders("_digits", PIPELINES) as found:
        await measure(found, zipfian(REQUESTS, EXPONENT), rounds=ROUNDS, seconds=SECONDS, connections=CALLERS)
        figures = {name: (await contender.metrics())["cache"] for name, contender in found.items()}
    base = found["without the cache"].best
    table(
        f"digits example, {CALLERS} callers, Zipf {EXPONENT:g} over 1,797 images, best of {ROUNDS} rounds",
        ("", "requests/s", "ratio", "p50 ms", "p99 ms", "hit rate", "saved s"),
        [
            (
                name,
                f"{contender.best:.0f}",
                f"{contender.best / base:.2f}",
                f"{percentile(contender.latencies, 50) * 1000:.2f}",
                f"{percentile(contender.latencies, 99) * 1000:.2f}",
                f"{figures[name]['hit_rate']:.2f}",
                f"{figures[name]['saved_seconds']:.1f}",
            )
            for name, contender in found.items()
        ],
    )


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
