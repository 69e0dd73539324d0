"""What runs count for their deployment, and what their steps report: once, and as it was told."""

from __future__ import annotations

import time
from dataclasses import replace

import orjson
import pytest
from tests.contracts.stores import NO_VIEW, Ports, finished_run, new_job, outcome

from pipeserve.errors import StaleAttemptError
from pipeserve.jobs import CacheReceipt, JobStatus, StepReport
from pipeserve.runtime.ports import RunView

COUNTED = {"cache_hits": 3, "cache_misses": 1, "cache_saved_seconds": 0.125}


async def test_counters_are_summed_over_runs_of_both_kinds(ports: Ports) -> None:
    assert dict((await ports.operations.figures()).counters) == {}
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id, counters=COUNTED))
    run = finished_run(time.time())
    await ports.ledger.record([replace(run, outcome=replace(run.outcome, counters={**COUNTED, "cache_joins": 2}))])
    counters = (await ports.operations.figures()).counters
    assert counters == {"cache_hits": 6, "cache_misses": 2, "cache_saved_seconds": 0.25, "cache_joins": 2}


async def test_a_run_that_is_recorded_or_finished_again_counts_once(ports: Ports) -> None:
    job, opened = new_job(), finished_run(time.time())
    opened = replace(opened, outcome=replace(opened.outcome, counters=COUNTED))
    whole = finished_run(time.time())
    whole = replace(whole, outcome=replace(whole.outcome, counters=COUNTED))
    await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    await ports.ledger.open(opened.job, opened.owner)
    ended = outcome(job.job_id, counters=COUNTED, latencies={"async": [0.1]})
    for _ in range(2):
        assert await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, ended)
        await ports.ledger.record([opened, whole, whole])
    assert dict((await ports.operations.figures()).counters) == {name: 3 * value for name, value in COUNTED.items()}


async def test_a_finish_that_is_refused_counts_nothing_but_its_refusal(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    with pytest.raises(StaleAttemptError):
        await ports.ledger.finish(job.job_id, 2, [], NO_VIEW, outcome(job.job_id, 2, counters=COUNTED))
    await ports.ledger.cancel(job.job_id)
    assert not await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id, counters=COUNTED))
    assert dict((await ports.operations.figures()).counters) == {"fenced_writes": 1}
    canceled = outcome(job.job_id, status=JobStatus.CANCELED, counters={"cache_hits": 1})
    assert await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, canceled)
    assert dict((await ports.operations.figures()).counters) == {"fenced_writes": 1, "cache_hits": 1}


async def test_a_counter_that_is_no_number_costs_the_run_nothing(ports: Ports) -> None:
    run = finished_run(time.time())
    strange = {"a": float("nan"), "b": float("inf"), "c": 0.0, "d": 1e-7, "e": 2.0**60}
    await ports.ledger.record([replace(run, outcome=replace(run.outcome, counters=strange))])
    assert (await ports.operations.figures()).counters == {"d": pytest.approx(1e-7), "e": 2.0**60}


async def test_step_reports_come_back_with_all_that_they_say(ports: Ports) -> None:
    told = [
        StepReport(
            name="embed",
            status="completed",
            attempt=2,
            duration=0.5,
            calls=3,
            cache=CacheReceipt(
                status="miss",
                reason="changed",
                changed=["text"],
                detail="text is new",
                saved=0.25,
                ttl=60.0,
                stored=True,
            ),
            batch=8,
        ),
        StepReport(
            name="load", status="completed", cached=True, cache=CacheReceipt(status="shared_hit", age=1.5), resumed=True
        ),
    ]
    steps = orjson.dumps([report.model_dump(mode="json") for report in told])
    job, run = new_job(), finished_run(time.time())
    await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    await ports.ledger.append(job.job_id, 1, [], RunView(steps=steps))
    await ports.ledger.record([replace(run, view=RunView(steps=steps))])
    for job_id in (job.job_id, run.job.job_id):
        shown = await ports.ledger.get(job_id)
        assert shown is not None
        assert shown.steps == told
    await ports.ledger.release("owner", lost=False)


async def test_step_reports_of_other_versions_are_read_as_far_as_they_are_known(ports: Ports) -> None:
    run = finished_run(time.time())
    steps = b'[{"name":"old","status":"completed","duration":0.5},{"name":"new","status":"completed","colour":"red"}]'
    await ports.ledger.record([replace(run, view=RunView(steps=steps))])
    shown = await ports.ledger.get(run.job.job_id)
    assert shown is not None
    assert [(step.name, step.calls, step.cache, step.batch, step.resumed) for step in shown.steps] == [
        ("old", 1, None, None, False),
        ("new", 1, None, None, False),
    ]
