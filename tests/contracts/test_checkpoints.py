"""The results of durable steps: kept over attempts, gone with the job's end."""

from __future__ import annotations

import time

import pytest
from tests.contracts.stores import NO_VIEW, Ports, finished_run, new_job, outcome

from pipeserve.errors import StaleAttemptError
from pipeserve.jobs import JobStatus

MARKER = b"a-marker-to-look-for"
RECORD = b'{"inputs":"abc"}\n\x00\xff' + MARKER


async def test_the_next_attempt_finds_what_the_last_one_saved(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("first", 1)
    assert dict(await ports.checkpoints.load(job.job_id)) == {}
    await ports.checkpoints.save(job.job_id, 1, "embed", b"old")
    await ports.checkpoints.save(job.job_id, 1, "embed", RECORD)
    await ports.checkpoints.save(job.job_id, 1, "süß", b"")
    await ports.ledger.release("first", lost=True)
    await ports.expire_records()  # a job that waits is live too
    await ports.ledger.claim("second", 1)
    assert dict(await ports.checkpoints.load(job.job_id)) == {"embed": RECORD, "süß": b""}
    assert dict(await ports.checkpoints.load(new_job().job_id)) == {}
    await ports.ledger.release("second", lost=False)


async def test_only_the_attempt_that_owns_the_job_may_save(ports: Ports) -> None:
    job = new_job()
    with pytest.raises(StaleAttemptError):
        await ports.checkpoints.save(job.job_id, 1, "a", RECORD)
    await ports.ledger.submit(job)
    with pytest.raises(StaleAttemptError):
        await ports.checkpoints.save(job.job_id, 0, "a", RECORD)
    await ports.ledger.claim("silent", 1)
    await ports.expire_leases()
    await ports.ledger.claim("next", 1)
    with pytest.raises(StaleAttemptError):
        await ports.checkpoints.save(job.job_id, 1, "a", RECORD)
    await ports.checkpoints.save(job.job_id, 2, "b", RECORD)
    assert list(await ports.checkpoints.load(job.job_id)) == ["b"]
    await ports.ledger.finish(job.job_id, 2, [], NO_VIEW, outcome(job.job_id, 2))
    with pytest.raises(StaleAttemptError):
        await ports.checkpoints.save(job.job_id, 2, "c", RECORD)
    assert dict(await ports.checkpoints.load(job.job_id)) == {}


@pytest.mark.parametrize(
    "end", ["completed", "failed", "timed_out", "canceled", "canceled while it waits", "worker lost", "recorded"]
)
async def test_nothing_is_left_when_the_job_has_ended(ports: Ports, end: str) -> None:
    run = finished_run(time.time(), max_attempts=1 if end == "worker lost" else 3)
    job, owner = run.job, run.owner
    if end == "recorded":
        await ports.ledger.open(job, owner)
    else:
        await ports.ledger.submit(job)
        await ports.ledger.claim(owner, 1)
    await ports.checkpoints.save(job.job_id, 1, "embed", RECORD)
    assert MARKER in await ports.everything()
    if end == "recorded":
        await ports.ledger.record([run])
    elif end == "worker lost":
        await ports.ledger.release(owner, lost=True)
    elif end == "canceled while it waits":
        await ports.ledger.release(owner, lost=False)
        await ports.ledger.cancel(job.job_id)
    else:
        await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id, status=JobStatus(end)))
    ended = await ports.ledger.get(job.job_id)
    assert ended is not None
    assert ended.status.terminal
    assert dict(await ports.checkpoints.load(job.job_id)) == {}
    assert MARKER not in await ports.everything()
