"""Whose turn it is: lanes one after the other, and within a lane the oldest, with its priority counted in."""

from __future__ import annotations

import pytest
from tests.contracts.stores import NO_VIEW, Ports, new_job, outcome

from pipeserve.runtime.ports import PRIORITY_SECONDS, NewJob


async def submitted(ports: Ports, *lanes: str) -> list[NewJob]:
    """One new job for each of these lanes, in this order."""
    jobs = [new_job(lane=lane, run_name=f"{lane} {n}") for n, lane in enumerate(lanes)]
    for job in jobs:
        await ports.ledger.submit(job)
    return jobs


async def taken(ports: Ports, count: int) -> list[str]:
    """The run names of the jobs that are claimed one by one."""
    return [claim.run_name for _ in range(count) for claim in await ports.ledger.claim("worker", 1)]


@pytest.mark.parametrize(("big", "small"), [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("served", [0, 1, 4])
async def test_a_lane_with_many_jobs_delays_anothers_first_job_by_at_most_one_round(
    ports: Ports, big: str, small: str, served: int
) -> None:
    await submitted(ports, *[big] * 40)
    await taken(ports, served)
    admission = await ports.ledger.submit(new_job(lane=small, run_name="first"))
    order = await taken(ports, 3)
    assert order.index("first") <= 1
    assert admission.queue_position == order.index("first")


@pytest.mark.parametrize("newcomer", ["0", "b5", "z"])
async def test_a_newcomer_waits_for_each_other_lane_once_at_most(ports: Ports, newcomer: str) -> None:
    await submitted(ports, *["a", "b", "c"] * 10)
    await taken(ports, 4)
    await ports.ledger.submit(new_job(lane=newcomer, run_name="first"))
    before = (await taken(ports, 4)).index("first")
    assert before <= 3


async def test_one_claim_for_many_jobs_takes_turns_too(ports: Ports) -> None:
    await submitted(ports, *["a"] * 10, *["b"] * 3)
    claims = await ports.ledger.claim("worker", 6)
    assert sorted(claim.run_name[0] for claim in claims) == ["a", "a", "a", "b", "b", "b"]


async def test_lanes_take_turns_until_the_last_job_and_each_keeps_its_order(ports: Ports) -> None:
    jobs = await submitted(ports, "a", "a", "a", "b", "c", "c")
    order = await taken(ports, 10)
    assert order == [jobs[n].run_name for n in (0, 3, 4, 1, 5, 2)]


async def test_positions_count_the_turns_that_come_before(ports: Ports) -> None:
    jobs = await submitted(ports, "c", "c", "c", "a", "b", "b")
    positions: dict[str, int | None] = {}
    for job in jobs:
        shown = await ports.ledger.get(job.job_id)
        assert shown is not None
        positions[job.run_name] = shown.queue_position
    order = await taken(ports, len(jobs))
    assert positions == {name: place for place, name in enumerate(order)}


async def test_a_lane_of_one_job_at_a_time_leaves_the_others_their_turns(ports: Ports) -> None:
    await submitted(ports, *["m"] * 10, "a", "z")
    served: list[str] = []
    for _ in range(12):
        [name] = await taken(ports, 1)
        served.append(name[0])
        if served[-1] != "m":  # at once another one
            await submitted(ports, served[-1])
    # A lane that comes anew each time can have two turns where the others have one, and no more.
    assert min(served.count(lane) for lane in ("a", "m", "z")) >= 3


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize(("lane", "before"), [("a", 0), ("z", 1)])
async def test_a_lane_that_is_given_back_a_job_has_its_turn_in_this_round(
    ports: Ports, lane: str, before: int, lost: bool
) -> None:
    await ports.ledger.submit(new_job(lane=lane, run_name="given back"))
    await ports.ledger.claim("dies", 1)
    await submitted(ports, *["m"] * 10)
    await taken(ports, 3)
    await ports.ledger.release("dies", lost=lost)
    assert (await taken(ports, 2)).index("given back") == before  # by name, where turns are equal


async def test_a_canceled_job_is_no_turn_of_its_lane(ports: Ports) -> None:
    first, second, other = await submitted(ports, "a", "a", "b")
    await ports.ledger.cancel(first.job_id)
    last = await ports.ledger.get(other.job_id)
    assert last is not None
    assert last.queue_position == 1
    await ports.ledger.cancel(other.job_id)
    assert await taken(ports, 3) == [second.run_name]


async def test_within_a_lane_the_higher_priority_goes_first(ports: Ports) -> None:
    for priority in (-1, 0, 10, 0, -10, 3):
        await ports.ledger.submit(new_job(priority=priority, run_name=str(priority)))
    assert await taken(ports, 6) == ["10", "3", "0", "0", "-1", "-10"]


async def test_priority_buys_no_turn_from_another_lane(ports: Ports) -> None:
    jobs = await submitted(ports, "a", "a")
    urgent = new_job(lane="b", priority=10, run_name="urgent")
    await ports.ledger.submit(urgent)
    assert await taken(ports, 3) == [jobs[0].run_name, "urgent", jobs[1].run_name]


async def test_a_job_of_low_priority_ages_past_younger_ones(ports: Ports) -> None:
    old, young = new_job(priority=0, run_name="old"), new_job(priority=2, run_name="young")
    await ports.ledger.submit(old)
    await ports.pass_time(PRIORITY_SECONDS + 5)
    await ports.ledger.submit(young)  # two steps are worth two minutes
    assert await taken(ports, 1) == ["young"]
    await ports.ledger.finish(young.job_id, 1, [], NO_VIEW, outcome(young.job_id))
    await ports.pass_time(PRIORITY_SECONDS)
    await ports.ledger.submit(new_job(priority=2, run_name="younger"))
    assert await taken(ports, 2) == ["old", "younger"]


async def test_a_record_shows_its_priority(ports: Ports) -> None:
    job = new_job(priority=-7)
    await ports.ledger.submit(job)
    shown = await ports.ledger.get(job.job_id)
    assert shown is not None
    assert shown.priority == -7
