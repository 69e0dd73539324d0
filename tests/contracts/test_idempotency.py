"""Requests that are sent more than once, and become one job."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.contracts.stores import NO_VIEW, Ports, finished_run, new_job, outcome
from tests.contracts.test_ledger import types

from pipeserve.errors import IdempotencyMismatchError, QueueFullError
from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import Admission, IdempotencyKey, NewJob


def keyed(key: str = "caller 1/key 1", fingerprint: str = "body 1", **changes: Any) -> NewJob:
    """A new job under an idempotency key."""
    return new_job(idempotency=IdempotencyKey(fingerprint, key), **changes)


def chosen(job_id: str, fingerprint: str = "body 1") -> NewJob:
    """A job under an id that its caller chose."""
    return new_job(job_id=job_id, idempotency=IdempotencyKey(fingerprint))


async def test_a_hundred_submissions_under_one_key_at_once_make_one_job(ports: Ports) -> None:
    admissions = await asyncio.gather(*(ports.ledger.submit(keyed()) for _ in range(100)))
    assert len({admission.job_id for admission in admissions}) == 1
    assert [admission.replayed for admission in admissions].count(False) == 1
    assert {admission.queue_position for admission in admissions} == {0}
    [claim] = await ports.ledger.claim("worker", 100)
    assert claim.job_id == admissions[0].job_id
    assert await types(ports, claim.job_id) == ["job_queued"]


async def test_another_body_under_a_key_is_refused_and_leaves_nothing(ports: Ports) -> None:
    await ports.ledger.submit(keyed())
    refused = keyed(fingerprint="body 2")
    with pytest.raises(IdempotencyMismatchError):
        await ports.ledger.submit(refused)
    assert await ports.ledger.get(refused.job_id) is None
    assert len(await ports.ledger.claim("worker", 5)) == 1


async def test_each_key_is_a_job_of_its_own_whatever_its_body(ports: Ports) -> None:
    first, second = keyed("caller 1/key 1"), keyed("caller 2/key 1")
    for job in (first, second):
        assert (await ports.ledger.submit(job)).job_id == job.job_id
    assert len(await ports.ledger.claim("worker", 5)) == 2


async def test_a_replay_tells_where_the_job_is_by_now(ports: Ports) -> None:
    await ports.ledger.submit(new_job())
    first = keyed()
    await ports.ledger.submit(first)
    assert await ports.ledger.submit(keyed()) == Admission(first.job_id, replayed=True, queue_position=1)
    await ports.ledger.claim("worker", 2)
    assert await ports.ledger.submit(keyed()) == Admission(first.job_id, replayed=True, queue_position=None)


async def test_a_submission_that_is_repeated_because_its_reply_was_lost_is_no_replay(ports: Ports) -> None:
    job = keyed()
    for _ in range(2):
        assert await ports.ledger.submit(job) == Admission(job.job_id, replayed=False, queue_position=0)
    assert len(await ports.ledger.claim("worker", 5)) == 1


@pytest.mark.parametrize("end", ["finished", "canceled"])
async def test_a_key_lives_as_long_as_its_jobs_record(ports: Ports, end: str) -> None:
    job = keyed()
    await ports.ledger.submit(job)
    if end == "finished":
        await ports.ledger.claim("worker", 1)
        await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
    else:
        await ports.ledger.cancel(job.job_id)
    assert await ports.ledger.submit(keyed()) == Admission(job.job_id, replayed=True, queue_position=None)
    with pytest.raises(IdempotencyMismatchError):
        await ports.ledger.submit(keyed(fingerprint="body 2"))

    await ports.expire_records()
    again = keyed(fingerprint="body 2")
    assert await ports.ledger.submit(again) == Admission(again.job_id, replayed=False, queue_position=0)


async def test_a_job_that_a_full_queue_refused_leaves_no_key(ports: Ports) -> None:
    for _ in range(ports.max_queue_size - 1):
        await ports.ledger.submit(new_job())
    known = keyed("known")
    await ports.ledger.submit(known)
    with pytest.raises(QueueFullError):
        await ports.ledger.submit(keyed("refused"))
    assert (await ports.ledger.submit(keyed("known"))).job_id == known.job_id  # a replay needs no room

    await ports.ledger.claim("worker", 1)
    again = keyed("refused", fingerprint="body 2")
    assert (await ports.ledger.submit(again)).job_id == again.job_id


async def test_open_and_submit_share_their_keys(ports: Ports) -> None:
    opened, queued = keyed("opened first"), keyed("queued first")
    assert await ports.ledger.open(opened, "api") == Admission(opened.job_id, replayed=False, queue_position=None)
    assert await ports.ledger.submit(queued) == Admission(queued.job_id, replayed=False, queue_position=0)

    late = keyed("opened first")
    assert await ports.ledger.submit(late) == Admission(opened.job_id, replayed=True, queue_position=None)
    late = keyed("queued first")
    assert await ports.ledger.open(late, "api") == Admission(queued.job_id, replayed=True, queue_position=0)
    assert await ports.ledger.get(late.job_id) is None
    for other in ("opened first", "queued first"):
        with pytest.raises(IdempotencyMismatchError):
            await ports.ledger.open(keyed(other, fingerprint="body 2"), "api")
    shown = await ports.ledger.get(queued.job_id)
    assert shown is not None
    assert shown.status is JobStatus.PENDING
    await ports.ledger.release("api", lost=False)


async def test_many_who_open_under_one_key_at_once_run_it_once(ports: Ports) -> None:
    admissions = await asyncio.gather(*(ports.ledger.open(keyed(), f"api {n}") for n in range(20)))
    assert len({admission.job_id for admission in admissions}) == 1
    assert [admission.replayed for admission in admissions].count(False) == 1
    for n in range(20):
        await ports.ledger.release(f"api {n}", lost=False)


async def test_a_run_that_was_opened_under_a_key_and_recorded_at_its_end_keeps_it_as_long_as_its_record(
    ports: Ports,
) -> None:
    run = finished_run(time.time(), idempotency=IdempotencyKey("body 1", "caller 1/key 1"))
    await ports.ledger.open(run.job, run.owner)
    await ports.ledger.record([run])
    assert await ports.ledger.submit(keyed()) == Admission(run.job.job_id, replayed=True, queue_position=None)
    await ports.expire_records()
    again = keyed()
    assert (await ports.ledger.submit(again)).job_id == again.job_id


async def test_the_key_of_a_run_that_was_opened_and_then_recorded_is_not_kept_for_ever(ports: Ports) -> None:
    run = finished_run(time.time(), idempotency=IdempotencyKey("body 1", "caller 1/key 1"))
    await ports.ledger.open(run.job, run.owner)
    await ports.ledger.record([run])
    await ports.expire_records()
    assert b"caller 1/key 1" not in await ports.everything()


async def test_an_id_that_the_caller_chose_is_a_key_itself(ports: Ports) -> None:
    job = chosen(new_job().job_id)
    assert await ports.ledger.submit(job) == Admission(job.job_id, replayed=False, queue_position=0)
    assert await ports.ledger.submit(job) == Admission(job.job_id, replayed=True, queue_position=0)
    with pytest.raises(IdempotencyMismatchError):
        await ports.ledger.submit(chosen(job.job_id, "body 2"))
    assert len(await ports.ledger.claim("worker", 5)) == 1


async def test_an_id_that_a_caller_chose_can_be_no_other_requests_job(ports: Ports) -> None:
    plain, under_key = new_job(), keyed(fingerprint="body 2")
    for job in (plain, under_key):
        await ports.ledger.submit(job)
        with pytest.raises(IdempotencyMismatchError):
            await ports.ledger.submit(chosen(job.job_id))
        with pytest.raises(IdempotencyMismatchError):
            await ports.ledger.open(chosen(job.job_id), "api")


async def test_many_who_choose_one_id_at_once_make_one_job(ports: Ports) -> None:
    job = chosen(new_job().job_id)
    admissions = await asyncio.gather(*(ports.ledger.submit(job) for _ in range(20)))
    assert [admission.replayed for admission in admissions].count(False) == 1
    assert len(await ports.ledger.claim("worker", 20)) == 1


async def test_a_chosen_id_can_be_opened_by_one_request_only(ports: Ports) -> None:
    job = chosen(new_job().job_id)
    admissions = await asyncio.gather(*(ports.ledger.open(job, "api") for _ in range(5)))
    assert [admission.replayed for admission in admissions].count(False) == 1
    await ports.ledger.release("api", lost=False)
