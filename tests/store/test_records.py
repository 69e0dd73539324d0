"""Records that something else than this version wrote."""

from __future__ import annotations

from typing import Any

import pytest
from tests.contracts.stores import new_job

from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import JobQuery
from pipeserve.store import DeploymentStore

GARBAGE = b"\xff{"


async def test_a_field_that_can_not_be_read_is_absent_and_the_rest_is_shown(
    deployment_store: DeploymentStore, caplog: pytest.LogCaptureFixture
) -> None:
    redis: Any = deployment_store.redis  # redis-py types its asyncio replies as if they were not
    job = new_job(run_name="a run", labels={"a": "b"})
    await deployment_store.ledger.submit(job)
    fields = [
        "steps",
        "progress",
        "error",
        "outputs",
        "parameters",
        "labels",
        "started_at",
        "completed_at",
        "execution_time",
        "last_seq",
    ]
    await redis.hset(deployment_store.keys.job(job.job_id), mapping=dict.fromkeys(fields, GARBAGE))
    await redis.hset(deployment_store.keys.labels, job.job_id, GARBAGE)
    for _ in range(2):
        [shown] = (await deployment_store.ledger.find(JobQuery())).jobs
        assert (shown.status, shown.run_name, shown.steps, shown.labels) == (JobStatus.PENDING, "a run", [], {})
        assert (shown.parameters, shown.outputs, shown.error, shown.started_at) == (None, None, None, None)
    assert (await deployment_store.ledger.find(JobQuery(labels={"a": "b"}))).jobs == []
    [told] = [record.getMessage() for record in caplog.records if job.job_id in record.getMessage()]
    assert all(field in told for field in fields)


@pytest.mark.parametrize("field", ["status", "created_at"])
async def test_a_record_without_a_readable_state_is_left_out_of_the_list(
    deployment_store: DeploymentStore, field: str
) -> None:
    redis: Any = deployment_store.redis
    bad, good = new_job(), new_job()
    await deployment_store.ledger.submit(bad)
    await deployment_store.ledger.submit(good)
    before: Any = await redis.hget(deployment_store.keys.job(bad.job_id), field)
    await redis.hset(deployment_store.keys.job(bad.job_id), field, GARBAGE)
    assert [job.job_id for job in (await deployment_store.ledger.find(JobQuery())).jobs] == [good.job_id]
    assert await deployment_store.ledger.get(bad.job_id) is None
    await redis.hset(deployment_store.keys.job(bad.job_id), field, before)
