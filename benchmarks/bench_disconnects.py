"""1,000 disconnects at random moments over 200 jobs, a restart of the store and a killed replica among them.

Prints how many events were lost and how many were repeated; both should be 0. ``ARGS="--jobs 200 --disconnects 1000"``.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from tests.faults.installation import installation
from tests.streams.disconnects import torn
from tests.streams.test_disconnects import kill_and_start

from benchmarks._machine import table


async def run(jobs: int, disconnects: int, seed: int) -> None:
    """Run it once."""
    async with installation("drill", apis=2, supervisors=1, concurrency=jobs) as at:
        began = time.monotonic()
        tally = await torn(
            at,
            jobs=jobs,
            disconnects=disconnects,
            seed=seed,
            seconds=12.0,
            faults=[("the store restarted", at.restart_store), ("a replica killed", lambda: kill_and_start(at))],
        )
        seconds = time.monotonic() - began
    title = f"{jobs} jobs, {seconds:.0f} s; {'; '.join(tally.faults)}"
    rows = [
        ["disconnects", str(tally.disconnects)],
        ["streams that broke by themselves", str(tally.broken)],
        ["events read", str(tally.events)],
        ["events lost", str(tally.lost)],
        ["events repeated", str(tally.repeated)],
        ["logs without exactly one end", str(tally.unended)],
    ]
    table(title, ["", ""], rows)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--disconnects", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.jobs, arguments.disconnects, arguments.seed))


if __name__ == "__main__":
    main()
