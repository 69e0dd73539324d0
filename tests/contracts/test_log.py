"""Reading a job's log, from any position, as it grows."""

from __future__ import annotations

import asyncio

from tests.contracts.stores import NO_VIEW, Ports, body, new_job, numbers, outcome
from tests.store_fixtures import wait_until

from pipeserve.events import is_terminal
from pipeserve.runtime.ports import LogEntry, LogGap


async def running_job(ports: Ports) -> str:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    return job.job_id


async def collect(ports: Ports, job_id: str, after: int = 0) -> list[LogEntry | LogGap]:
    async with asyncio.timeout(20), ports.log.follow(job_id, after=after) as entries:
        return [entry async for entry in entries]


async def write(ports: Ports, job_id: str, count: int, *, batch: int = 5) -> None:
    for start in range(0, count, batch):
        bodies = [body(job_id, message=f"{n}") for n in range(start, min(start + batch, count))]
        await ports.ledger.append(job_id, 1, bodies, NO_VIEW)


async def test_read_pages_through_what_is_there(ports: Ports) -> None:
    job_id = await running_job(ports)
    await write(ports, job_id, 9)
    assert numbers(await ports.log.read(job_id, limit=4)) == [1, 2, 3, 4]
    assert numbers(await ports.log.read(job_id, after=4)) == [5, 6, 7, 8, 9, 10]
    assert await ports.log.read(job_id, after=10) == []
    assert await ports.log.read(new_job().job_id) == []


async def test_every_follower_gets_every_event_once_and_in_order_wherever_it_joins(ports: Ports) -> None:
    job_id = await running_job(ports)
    early = [asyncio.create_task(collect(ports, job_id)) for _ in range(2)]
    await write(ports, job_id, 50)
    late = asyncio.create_task(collect(ports, job_id))
    resumed = asyncio.create_task(collect(ports, job_id, after=20))
    await write(ports, job_id, 60)
    await ports.ledger.finish(job_id, 1, [body(job_id)], NO_VIEW, outcome(job_id))
    latest = await collect(ports, job_id)
    for entries in (*await asyncio.gather(*early), await late, latest):
        assert numbers(entries) == list(range(1, 114))
        assert isinstance(entries[-1], LogEntry)
        assert is_terminal(entries[-1].body)
    assert numbers(await resumed) == list(range(21, 114))


async def test_a_follower_of_a_finished_job_who_has_read_everything_ends_at_once(ports: Ports) -> None:
    job_id = await running_job(ports)
    await ports.ledger.finish(job_id, 1, [], NO_VIEW, outcome(job_id))
    assert numbers(await collect(ports, job_id, after=1)) == [2]
    assert await collect(ports, job_id, after=2) == []
    assert await collect(ports, job_id, after=99) == []


async def test_a_follower_sees_events_as_they_happen(ports: Ports) -> None:
    job_id = await running_job(ports)
    async with asyncio.timeout(10), ports.log.follow(job_id) as entries:
        for seq in range(1, 6):
            entry = await anext(entries)
            assert isinstance(entry, LogEntry)
            assert entry.seq == seq
            await ports.ledger.append(job_id, 1, [body(job_id)], NO_VIEW)
    await ports.ledger.release("owner", lost=False)


async def test_a_slow_follower_holds_nobody_up_and_misses_nothing(ports: Ports) -> None:
    job_id = await running_job(ports)
    async with asyncio.timeout(20), ports.log.follow(job_id) as entries:
        seen = [await anext(entries)]
        for _ in range(10):  # more than any buffer holds
            await write(ports, job_id, 28, batch=28)
        assert len(await collect_finished(ports, job_id)) == 282
        seen += [entry async for entry in entries]
    assert numbers(seen) == list(range(1, 283))


async def collect_finished(ports: Ports, job_id: str) -> list[LogEntry | LogGap]:
    other = asyncio.create_task(collect(ports, job_id))
    await ports.ledger.finish(job_id, 1, [], NO_VIEW, outcome(job_id))
    return await other


async def test_a_trimmed_log_begins_with_a_gap_that_says_what_is_missing(ports: Ports) -> None:
    job_id = await running_job(ports)
    await write(ports, job_id, 4 * ports.event_log_max, batch=100)
    await ports.ledger.finish(job_id, 1, [], NO_VIEW, outcome(job_id))
    total = 4 * ports.event_log_max + 2
    entries = await collect(ports, job_id, after=3)
    gap = entries[0]
    assert isinstance(gap, LogGap)
    assert gap.first == 4
    assert numbers(entries) == list(range(gap.last + 1, total + 1))
    assert ports.event_log_max <= len(entries) - 1 < 2 * ports.event_log_max
    assert (await ports.log.read(job_id, after=3))[0] == gap
    assert not isinstance((await ports.log.read(job_id, after=gap.last))[0], LogGap)


async def test_closing_the_log_ends_its_followers_without_a_terminal_event(ports: Ports) -> None:
    job_id = await running_job(ports)
    follower = asyncio.create_task(collect(ports, job_id))
    seen: list[LogEntry | LogGap] = []

    async def joined() -> bool:
        async with ports.log.follow(job_id) as entries:
            seen.append(await anext(entries))
        return bool(seen)

    await wait_until(joined, description="the log can be followed")
    ports.close()
    assert all(not is_terminal(entry.body) for entry in await follower if isinstance(entry, LogEntry))
    assert await collect(ports, job_id) == []
    await ports.ledger.release("owner", lost=False)


async def test_a_follower_lives_through_a_lost_attempt(ports: Ports) -> None:
    job_id = await running_job(ports)
    follower = asyncio.create_task(collect(ports, job_id))
    await ports.ledger.append(job_id, 1, [body(job_id)], NO_VIEW)
    await ports.ledger.release("owner", lost=True)
    await ports.ledger.claim("other", 1)
    await ports.ledger.append(job_id, 2, [body(job_id, 2)], NO_VIEW)
    await ports.ledger.finish(job_id, 2, [], NO_VIEW, outcome(job_id, 2))
    assert numbers(await follower) == [1, 2, 3, 4, 5]


async def test_a_follower_who_starts_past_the_end_ends_with_the_job(ports: Ports) -> None:
    job_id = await running_job(ports)
    followers = [asyncio.create_task(collect(ports, job_id, after=after)) for after in (2, 99)]
    async with ports.log.follow(job_id) as entries:
        await anext(entries)
        await ports.ledger.finish(job_id, 1, [], NO_VIEW, outcome(job_id))
        assert numbers([entry async for entry in entries]) == [2]
    async with asyncio.timeout(5):
        assert await asyncio.gather(*followers) == [[], []]
