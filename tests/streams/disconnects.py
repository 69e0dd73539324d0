"""Readers who are torn from their streams again and again, over every transport and at any replica, while parts die.

Each goes on after the number of its last event, so what it has in the end shows what was lost and what was repeated.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import httpx
from tests.faults.installation import Installation
from tests.streams.transports import TRANSPORTS, Read
from websockets.exceptions import WebSocketException

from pipeserve.client import UnreachableError

PAUSE = 0.05
"""Seconds before a reader tries another replica."""


@dataclass
class Tally:
    """What all readers together have seen."""

    disconnects: int = 0
    """Made by the readers themselves."""
    broken: int = 0
    """Streams that ended otherwise, because a replica or the store died."""
    lost: int = 0
    repeated: int = 0
    events: int = 0
    unended: int = 0
    """Logs without exactly one terminal event, as the last."""
    faults: list[str] = field(default_factory=list[str])


async def torn(
    at: Installation,
    *,
    jobs: int,
    disconnects: int,
    seed: int,
    seconds: float,
    faults: Sequence[tuple[str, Callable[[], Awaitable[object]]]],
    transports: Sequence[Read] = tuple(TRANSPORTS.values()),
) -> Tally:
    """Stream ``jobs`` jobs of ``seconds`` each, with that many disconnects at least and ``faults`` spread over them.

    Each reader takes any of the ``transports`` each time.
    """
    chance, tally = random.Random(seed), Tally()
    job_ids = [await at.submit(number=number, seconds=seconds) for number in range(jobs)]
    readers = [
        asyncio.create_task(_read(at, job_id, random.Random(chance.random()), tally, transports)) for job_id in job_ids
    ]
    for index, (name, cause) in enumerate(faults, start=1):
        enough = disconnects * index / (len(faults) + 1)
        # Readers have a count of their disconnects, and no event for each.
        while tally.disconnects < enough and not all(task.done() for task in readers):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await cause()
        tally.faults.append(f"{name} after {tally.disconnects} disconnects")
    await asyncio.gather(*readers)
    while tally.disconnects < disconnects:  # the rest over logs that have ended
        await _read(at, chance.choice(job_ids), chance, tally, transports)
    return tally


async def _read(at: Installation, job_id: str, chance: random.Random, tally: Tally, transports: Sequence[Read]) -> None:
    seqs: list[int] = []
    kinds: list[str] = []
    while not (kinds and _ends(kinds[-1])):
        read, url = chance.choice(transports), chance.choice(at.urls)
        stop_after = chance.randint(1, 3)
        try:
            taken = 0
            async with aclosing(read(url, job_id, seqs[-1] if seqs else 0, None)) as events:
                async for event in events:
                    seqs.append(event["seq"])
                    kinds.append(event["event_type"])
                    taken += 1
                    if taken == stop_after:
                        tally.disconnects += 1
                        break
        except (httpx.HTTPError, WebSocketException, OSError, UnreachableError):
            tally.broken += 1
            await asyncio.sleep(PAUSE)
    tally.events += len(seqs)
    tally.repeated += len(seqs) - len(set(seqs))
    tally.lost += len(set(range(1, max(seqs) + 1)) - set(seqs))
    tally.unended += sum(map(_ends, kinds)) != 1


def _ends(kind: str) -> bool:
    return kind in ("pipeline_completed", "pipeline_failed", "pipeline_canceled", "pipeline_timed_out")
