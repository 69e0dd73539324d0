"""What a record shows where parameters or outputs are masked, and when the true ones leave the store."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from tests.contracts.stores import NO_VIEW, Ports, finished_run, new_job, outcome

from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import JobQuery

SECRET = b"a-marker-to-look-for"
TRUE = b'{"text":"hello","token":"a-marker-to-look-for"}'
SHOWN = b'{"text":"hello","token":"***"}'
MASKED = {"text": "hello", "token": "***"}


@pytest.mark.parametrize(
    "end", ["completed", "failed", "canceled", "timed_out", "canceled while it waits", "worker lost"]
)
async def test_masked_parameters_are_shown_and_the_true_ones_stay_for_the_workers_only(ports: Ports, end: str) -> None:
    job = new_job(parameters=TRUE, shown_parameters=SHOWN, max_attempts=2)
    await ports.ledger.submit(job)
    waiting = await ports.ledger.get(job.job_id)
    assert waiting is not None
    assert waiting.parameters == MASKED
    for attempt in (1, 2):
        [claim] = await ports.ledger.claim("owner", 1)
        assert (claim.attempt, claim.parameters) == (attempt, TRUE)  # every attempt gets them
        if attempt == 1:
            await ports.ledger.release("owner", lost=True)
            assert SECRET in await ports.everything()
    if end == "worker lost":
        await ports.ledger.release("owner", lost=True)
    elif end == "canceled while it waits":
        await ports.ledger.release("owner", lost=False)
        await ports.ledger.cancel(job.job_id)
    else:
        await ports.ledger.finish(job.job_id, 2, [], NO_VIEW, outcome(job.job_id, 2, JobStatus(end)))
    ended = await ports.ledger.get(job.job_id)
    assert ended is not None
    assert (ended.status.terminal, ended.parameters) == (True, MASKED)
    assert SECRET not in await ports.everything()


@pytest.mark.parametrize("way", ["open", "recorded", "opened and recorded"])
async def test_of_a_synchronous_run_only_the_shown_parameters_are_ever_written(ports: Ports, way: str) -> None:
    run = finished_run(time.time(), parameters=TRUE, shown_parameters=SHOWN)
    if way != "recorded":
        await ports.ledger.open(run.job, run.owner)
        assert SECRET not in await ports.everything()
    if way == "open":
        await ports.ledger.finish(run.job.job_id, 1, [], NO_VIEW, run.outcome)
    else:
        await ports.ledger.record([run])
    [shown] = (await ports.ledger.find(JobQuery(status=JobStatus.COMPLETED))).jobs
    assert shown.parameters == MASKED
    assert SECRET not in await ports.everything()


async def test_parameters_that_are_not_kept_are_not_shown_with_masks_either(ports: Ports) -> None:
    job = new_job(parameters=TRUE, shown_parameters=SHOWN, keep_parameters=False)
    run = finished_run(time.time(), parameters=TRUE, shown_parameters=SHOWN, keep_parameters=False)
    await ports.ledger.submit(job)
    [claim] = await ports.ledger.claim("owner", 1)
    assert claim.parameters == TRUE
    await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
    await ports.ledger.record([run])
    assert [job.parameters for job in (await ports.ledger.find(JobQuery())).jobs] == [None, None]
    stored = await ports.everything()
    assert SECRET not in stored
    assert b'"***"' not in stored


@pytest.mark.parametrize("sync", [True, False])
async def test_masked_outputs_are_shown_and_the_result_has_the_true_ones(ports: Ports, sync: bool) -> None:
    run = finished_run(time.time())
    masked = replace(run.outcome, outputs=TRUE, shown_outputs=SHOWN)
    if sync:
        await ports.ledger.record([replace(run, outcome=masked)])
    else:
        await ports.ledger.submit(run.job)
        await ports.ledger.claim("owner", 1)
        await ports.ledger.finish(run.job.job_id, 1, [], NO_VIEW, masked)
    job = await ports.ledger.get(run.job.job_id)
    assert job is not None
    assert (job.outputs, job.result) == (MASKED, {"text": "hello", "token": SECRET.decode()})
    assert SECRET.decode() not in job.model_dump_json()


async def test_without_masks_the_result_is_the_outputs(ports: Ports) -> None:
    run = finished_run(time.time())
    waiting = new_job()
    await ports.ledger.record([run])
    await ports.ledger.submit(waiting)
    job, pending = await ports.ledger.get(run.job.job_id), await ports.ledger.get(waiting.job_id)
    assert job is not None
    assert pending is not None
    assert (job.outputs, job.result) == ({"output": 42}, {"output": 42})
    assert (pending.outputs, pending.result) == (None, None)
