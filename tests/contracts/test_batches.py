"""Many jobs in one submission, each judged for itself."""

from __future__ import annotations

from tests.contracts.stores import Ports, new_job

from pipeserve.errors import IdempotencyMismatchError, QueueFullError
from pipeserve.runtime.ports import Admission, IdempotencyKey


async def test_a_batch_is_accepted_in_its_order(ports: Ports) -> None:
    jobs = [new_job(run_name=f"run {n}") for n in range(5)]
    admissions = await ports.ledger.submit_many(jobs)
    assert admissions == [Admission(job.job_id, queue_position=n) for n, job in enumerate(jobs)]
    claims = await ports.ledger.claim("worker", 5)
    assert [claim.run_name for claim in claims] == [job.run_name for job in jobs]


async def test_each_job_of_a_batch_is_judged_for_itself(ports: Ports) -> None:
    known = new_job(idempotency=IdempotencyKey("body", "known"))
    await ports.ledger.submit(known)
    first, last = new_job(), new_job()
    mismatch = new_job(idempotency=IdempotencyKey("another body", "known"))
    replay = new_job(idempotency=IdempotencyKey("body", "known"))
    admissions = await ports.ledger.submit_many([first, mismatch, replay, last])
    assert isinstance(admissions[1], IdempotencyMismatchError)
    assert [admission for admission in admissions if isinstance(admission, Admission)] == [
        Admission(first.job_id, queue_position=1),
        Admission(known.job_id, replayed=True, queue_position=0),
        Admission(last.job_id, queue_position=2),
    ]
    assert await ports.ledger.get(mismatch.job_id) is None


async def test_one_key_twice_in_a_batch_is_one_job(ports: Ports) -> None:
    jobs = [new_job(idempotency=IdempotencyKey("body", "same")) for _ in range(3)]
    admissions = await ports.ledger.submit_many(jobs)
    assert admissions == [Admission(jobs[0].job_id, replayed=n > 0, queue_position=0) for n in range(3)]
    assert len(await ports.ledger.claim("worker", 5)) == 1


async def test_a_queue_that_fills_up_in_the_middle_refuses_the_rest(ports: Ports) -> None:
    known = new_job(idempotency=IdempotencyKey("body", "known"))
    await ports.ledger.submit_many([known, *(new_job() for _ in range(ports.max_queue_size - 3))])
    jobs = [new_job() for _ in range(4)]
    replay = new_job(idempotency=IdempotencyKey("body", "known"))
    admissions = await ports.ledger.submit_many([*jobs, replay])
    assert [type(admission) for admission in admissions] == [
        Admission,
        Admission,
        QueueFullError,
        QueueFullError,
        Admission,
    ]
    kept = [await ports.ledger.get(job.job_id) for job in jobs]
    assert [job is None for job in kept] == [False, False, True, True]
    assert (await ports.operations.figures()).queue_depth == ports.max_queue_size


async def test_a_batch_of_nothing_is_nothing(ports: Ports) -> None:
    assert await ports.ledger.submit_many([]) == []
