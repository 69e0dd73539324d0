"""The cap of the queue, and what a refused caller is told."""

from __future__ import annotations

import math

import pytest
from tests.contracts.stores import Ports, new_job

from pipeserve.errors import QueueFullError


async def fill(ports: Ports) -> None:
    """Submit until the queue is full."""
    room = ports.max_queue_size - (await ports.operations.figures()).queue_depth
    await ports.ledger.submit_many([new_job() for _ in range(room)])


async def refused(ports: Ports) -> float:
    """The seconds after which a refused caller is to come back."""
    with pytest.raises(QueueFullError) as refusal:
        await ports.ledger.submit(new_job())
    assert refusal.value.retry_after is not None
    return refusal.value.retry_after


async def rate(ports: Ports) -> float:
    """Jobs taken per second of the last minute."""
    measured = (await ports.operations.figures()).drain_rate
    assert measured is not None
    return measured


async def test_where_nothing_leaves_the_queue_a_refused_caller_waits_half_a_minute(ports: Ports) -> None:
    await fill(ports)
    assert (await ports.operations.figures()).drain_rate is None
    assert await refused(ports) == 30.0


async def test_refused_callers_are_told_to_come_back_when_there_should_be_room_for_all_of_them(ports: Ports) -> None:
    await fill(ports)
    await ports.ledger.claim("worker", 2)
    await fill(ports)
    for before in range(10):
        fast = await rate(ports)  # nothing is taken meanwhile, so the rate only falls
        seconds = await refused(ports)
        slow = await rate(ports)
        assert math.ceil((1 + before) / fast) <= seconds <= max(math.ceil((1 + before) / slow), 1)


async def test_a_queue_that_drains_fast_has_room_again_at_once(ports: Ports) -> None:
    await fill(ports)
    await ports.ledger.claim("worker", ports.max_queue_size)
    await fill(ports)
    assert await refused(ports) == 1.0


async def test_only_what_was_taken_of_late_counts(ports: Ports) -> None:
    await fill(ports)
    await ports.ledger.claim("worker", 5)
    assert await rate(ports) > 0
    await fill(ports)
    await ports.pass_time(100)
    assert (await ports.operations.figures()).drain_rate is None
    assert await refused(ports) == 30.0


async def test_what_leaves_the_queue_makes_room_for_as_many(ports: Ports) -> None:
    await fill(ports)
    await ports.ledger.claim("worker", 3)
    admissions = await ports.ledger.submit_many([new_job() for _ in range(5)])
    assert [isinstance(admission, QueueFullError) for admission in admissions] == [False] * 3 + [True] * 2


async def test_a_job_that_is_given_back_has_its_place_even_in_a_full_queue(ports: Ports) -> None:
    await fill(ports)
    [claim] = await ports.ledger.claim("dies", 1)
    await fill(ports)
    await ports.ledger.release("dies", lost=True)
    assert (await ports.operations.figures()).queue_depth == ports.max_queue_size + 1
    assert [again.job_id for again in await ports.ledger.claim("worker", 1)] == [claim.job_id]
