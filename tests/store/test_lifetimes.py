"""How long what belongs to a job lives on the server, and what a restart leaves of it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contracts.stores import NO_VIEW, finished_run, new_job, outcome, picture

from pipeserve.runtime.ports import CacheGauges
from pipeserve.settings import StoreSettings
from pipeserve.store import DeploymentStore, open_store


@pytest.mark.parametrize("recorded", [True, False])
async def test_record_log_and_attachments_expire_at_the_same_moment(
    deployment_store: DeploymentStore, recorded: bool
) -> None:
    redis: Any = deployment_store.redis  # redis-py types its asyncio replies as if they were not
    ledger, keys = deployment_store.ledger, deployment_store.keys
    run = replace(finished_run(time.time()), attachments=[picture()])
    job_id = run.job.job_id
    if recorded:
        await ledger.record([run])
    else:
        await ledger.submit(run.job)
        await ledger.claim("owner", 1)
        await deployment_store.attachments.add(job_id, 1, [picture()])
        await deployment_store.checkpoints.save(job_id, 1, "step", b"record")
        for key in (keys.job(job_id), keys.events(job_id), keys.attachments(job_id), keys.checkpoints(job_id)):
            assert await redis.ttl(key) == -1  # a live job never ages
        await ledger.finish(job_id, 1, [], NO_VIEW, outcome(job_id))
    moments = {
        await redis.pexpiretime(key) for key in (keys.job(job_id), keys.events(job_id), keys.attachments(job_id))
    }
    assert len(moments) == 1
    assert moments.pop() > time.time() * 1000
    assert not await redis.exists(keys.checkpoints(job_id))


async def test_figures_of_caches_and_counters_do_not_stay_for_ever(deployment_store: DeploymentStore) -> None:
    redis: Any = deployment_store.redis
    run = finished_run(time.time())
    await deployment_store.ledger.record([replace(run, outcome=replace(run.outcome, counters={"cache_hits": 1}))])
    await deployment_store.operations.tell_cache("owner", CacheGauges(1, 2))
    assert 0 < await redis.ttl(deployment_store.keys.caches) <= 30
    prefix = deployment_store.keys.prefix
    assert await redis.ttl(prefix + "counters") == pytest.approx(await redis.ttl(prefix + "totals"), abs=2)


async def test_an_attachment_that_can_not_be_read_does_not_hide_the_others(
    deployment_store: DeploymentStore, caplog: pytest.LogCaptureFixture
) -> None:
    redis: Any = deployment_store.redis
    run = replace(finished_run(time.time()), attachments=[picture(1), picture(2)])
    job_id = run.job.job_id
    await deployment_store.ledger.record([run])
    key = deployment_store.keys.attachments(job_id)
    await redis.hset(key, mapping={"1": b"\xff no header", "x": b"{}\n"})
    assert await deployment_store.attachments.list(job_id) == [picture(2)]
    assert await deployment_store.attachments.get(job_id, 1) is None
    assert all(job_id in record.getMessage() for record in caplog.records)
    assert len(caplog.records) == 3


@pytest.mark.e2e
async def test_shared_results_checkpoints_and_attachments_survive_a_restart(short_dir: Path) -> None:
    settings = StoreSettings.from_environment(data_dir=short_dir)
    job = new_job()
    async with open_store(settings) as store, store.deployment("d") as deployment:
        await deployment.cache.set("digest", b"value", 60.0)
        await deployment.ledger.submit(job)
        await deployment.ledger.claim("owner", 1)
        await deployment.checkpoints.save(job.job_id, 1, "step", b"record")
        await deployment.attachments.add(job.job_id, 1, [picture()])
    async with open_store(settings) as store, store.deployment("d") as deployment:
        found = await deployment.cache.get("digest")
        assert found is not None
        value, remaining = found
        assert value == b"value"
        assert 0 < remaining <= 60
        assert dict(await deployment.checkpoints.load(job.job_id)) == {"step": b"record"}
        assert await deployment.attachments.list(job.job_id) == [picture()]
