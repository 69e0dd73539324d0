"""Worker processes killed under load: how soon their jobs start again, and how soon a canceled job has ended.

An installation of its own: two API processes, two supervisors with four worker processes each, one store; twelve
callers. Each history is checked as ``make drill`` does, which is the long version of this.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from tests.faults.drill import Plan, run
from tests.faults.sites import own_site

from benchmarks._machine import table

KILLS = 40
MINUTES = 1.0


def row(name: str, spread: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    figures = (spread[key] for key in ("p50", "p95", "max"))
    return (name, str(spread["count"]), *("-" if value is None else f"{value * 1000:.0f}" for value in figures))


async def main() -> int:
    """Measure and print; 1 if a promise was broken."""
    async with own_site() as site:
        drill = await run(site, Plan(kills=KILLS, minutes=MINUTES, seed=1))
    found = drill.found
    table(
        f"{len(drill.kills)} worker processes killed under {found['jobs']} jobs in {found['seconds']:.0f} s",
        ("", "jobs", "p50 ms", "p95 ms", "max ms"),
        [
            row("from a kill to the job's next start", found["recovery"]),
            row("from a cancel to the end of a running job", found["cancel"]),
        ],
    )
    print(f"  lost {found['lost']}, doubled {found['doubled']}, violations in all {found['violations']}")
    for violation in drill.violations:
        print(f"  {violation}")
    return 1 if drill.violations else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
