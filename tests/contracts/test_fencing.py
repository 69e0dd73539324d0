"""Writes of attempts that have lost their job: refused, and counted where an operator looks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from tests.contracts.stores import NO_VIEW, Ports, body, new_job, outcome, picture

from pipeserve.errors import StaleAttemptError
from pipeserve.runtime.ports import NewJob

WRITES: dict[str, Callable[[Ports, str, int], Awaitable[object]]] = {
    "append": lambda ports, job_id, attempt: ports.ledger.append(job_id, attempt, [body(job_id)], NO_VIEW),
    "finish": lambda ports, job_id, attempt: ports.ledger.finish(
        job_id, attempt, [], NO_VIEW, outcome(job_id, attempt)
    ),
    "attachment": lambda ports, job_id, attempt: ports.attachments.add(job_id, attempt, [picture()]),
    "checkpoint": lambda ports, job_id, attempt: ports.checkpoints.save(job_id, attempt, "step", b"{}"),
}


async def counted(ports: Ports, job: NewJob) -> tuple[int, float]:
    """Refused writes of this job, and of the whole deployment."""
    shown = await ports.ledger.get(job.job_id)
    assert shown is not None
    return shown.fenced_writes, (await ports.operations.figures()).counters.get("fenced_writes", 0)


@pytest.mark.parametrize("kind", WRITES)
async def test_each_write_of_an_attempt_that_lost_its_job_is_refused_and_counted(ports: Ports, kind: str) -> None:
    job, other = new_job(), new_job()
    for submitted in (job, other):
        await ports.ledger.submit(submitted)
    await ports.ledger.claim("frozen", 2)
    await ports.ledger.release("frozen", lost=True)
    write = WRITES[kind]

    for refused in (1, 2):  # while it waits
        with pytest.raises(StaleAttemptError):
            await write(ports, job.job_id, 1)
        assert await counted(ports, job) == (refused, refused)
    await ports.ledger.claim("next", 2)  # while another attempt runs
    with pytest.raises(StaleAttemptError):
        await write(ports, job.job_id, 1)
    assert await counted(ports, job) == (3, 3)
    await ports.ledger.finish(job.job_id, 2, [], NO_VIEW, outcome(job.job_id, 2))  # and when that has ended it
    with pytest.raises(StaleAttemptError):
        await write(ports, job.job_id, 1)
    assert await counted(ports, job) == (4, 4)
    assert await counted(ports, other) == (0, 4)


@pytest.mark.parametrize("kind", WRITES)
async def test_a_write_that_is_accepted_is_not_counted(ports: Ports, kind: str) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("worker", 1)
    await WRITES[kind](ports, job.job_id, 1)
    assert await counted(ports, job) == (0, 0)


async def test_a_finish_that_is_repeated_is_true_again_and_not_counted(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("worker", 1)
    for _ in range(3):
        assert await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
    assert await counted(ports, job) == (0, 0)


async def test_a_finish_that_a_cancel_forestalled_is_not_counted(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("worker", 1)
    await ports.ledger.cancel(job.job_id)
    assert not await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
    assert await counted(ports, job) == (0, 0)


async def test_an_attempt_whose_job_was_ended_as_lost_is_counted(ports: Ports) -> None:
    job = new_job(max_attempts=1)
    await ports.ledger.submit(job)
    await ports.ledger.claim("frozen", 1)
    await ports.expire_leases()
    await ports.ledger.renew("other", [])
    with pytest.raises(StaleAttemptError):
        await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
    assert await counted(ports, job) == (1, 1)


async def test_a_refused_write_to_a_job_that_is_gone_leaves_no_record(ports: Ports) -> None:
    job = new_job()
    for write in WRITES.values():
        with pytest.raises(StaleAttemptError):
            await write(ports, job.job_id, 1)
    assert await ports.ledger.get(job.job_id) is None
