"""Webhooks that have something to send: handed to one sender at a time, until all is sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from tests.contracts.stores import NO_VIEW, Ports, body, finished_run, new_job, outcome

from pipeserve.events import TERMINAL_EVENTS, EventType
from pipeserve.jobs import Job, JobStatus, WebhookDelivery
from pipeserve.runtime.ports import DueWebhook, JobQuery, NewJob, Webhook, WebhookProgress

ENDS = Webhook("https://example.com/ends", tuple(TERMINAL_EVENTS))
LIVE = Webhook("https://example.com/live", ("log", "pipeline_completed"))


async def due(ports: Ports, limit: int = 10, hold: float = 30.0) -> list[DueWebhook]:
    """What a sender is given."""
    found, _ = await ports.webhooks.due(limit, hold=hold)
    return found


async def running(ports: Ports, webhook: Webhook | None, **changes: Any) -> NewJob:
    """A job that runs as attempt 1."""
    job = new_job(webhook=webhook, **changes)
    await ports.ledger.submit(job)
    await ports.ledger.claim("worker", 1)
    return job


async def finish(ports: Ports, job: NewJob) -> int:
    """End it well; the number of its last event."""
    await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
    return (await shown(ports, job)).last_seq


async def shown(ports: Ports, job: NewJob) -> Job:
    """The job as it is now."""
    found = await ports.ledger.get(job.job_id)
    assert found is not None
    return found


def delivery(seq: int, **changes: Any) -> WebhookDelivery:
    """One try."""
    known: dict[str, Any] = {"seq": seq, "event_type": "log", "attempt": 1, "at": datetime.now(UTC), "duration": 0.5}
    return WebhookDelivery(**(known | changes))


async def test_a_webhook_that_wants_the_end_alone_is_due_when_the_job_has_ended(ports: Ports) -> None:
    assert await ports.webhooks.due(10, hold=30) == ([], None)
    job = await running(ports, ENDS)
    await ports.ledger.append(job.job_id, 1, [body(job.job_id)] * 3, NO_VIEW)
    assert await ports.webhooks.due(10, hold=30) == ([], None)
    last = await finish(ports, job)
    [found] = await due(ports)
    assert (found.job_id, found.webhook, found.attempt) == (job.job_id, ENDS, 0)
    assert found.after < last


async def test_a_live_webhook_is_due_with_each_write_from_the_first_event_on(ports: Ports) -> None:
    job = await running(ports, LIVE)
    assert await due(ports) == [DueWebhook(job.job_id, LIVE, after=0, attempt=0)]
    await ports.webhooks.settle(job.job_id, WebhookProgress(after=1))
    assert await ports.webhooks.due(10, hold=30) == ([], None)
    await ports.ledger.append(job.job_id, 1, [body(job.job_id)], NO_VIEW)
    assert await due(ports) == [DueWebhook(job.job_id, LIVE, after=1, attempt=0)]
    await ports.webhooks.settle(job.job_id, WebhookProgress(after=2))
    await finish(ports, job)
    assert await due(ports) == [DueWebhook(job.job_id, LIVE, after=2, attempt=0)]


@pytest.mark.parametrize("end", ["canceled", "expired", "worker_lost"])
async def test_an_end_that_the_store_itself_writes_is_due_too(ports: Ports, end: str) -> None:
    job = new_job(webhook=ENDS, max_attempts=1, expires_in=10)
    await ports.ledger.submit(job)
    if end == "canceled":
        await ports.ledger.cancel(job.job_id)
    elif end == "expired":
        await ports.pass_time(11)
        await ports.ledger.claim("worker", 1)
    else:
        await ports.ledger.claim("worker", 1)
        await ports.ledger.release("worker", lost=True)
    ended = await shown(ports, job)
    assert ended.error is not None
    assert ended.error.code == end
    assert [found.job_id for found in await due(ports)] == [job.job_id]


async def test_a_synchronous_run_has_its_webhook_sent_as_well(ports: Ports) -> None:
    run = finished_run(time.time(), webhook=ENDS)
    await ports.ledger.record([run])
    assert [found.job_id for found in await due(ports)] == [run.job.job_id]


async def test_a_job_without_webhook_is_never_due(ports: Ports) -> None:
    job = await running(ports, None)
    await finish(ports, job)
    assert await ports.webhooks.due(10, hold=30) == ([], None)
    assert (await shown(ports, job)).webhook is None


async def test_what_one_sender_holds_nobody_else_is_given(ports: Ports) -> None:
    jobs = [await running(ports, ENDS) for _ in range(7)]
    for job in jobs:
        await finish(ports, job)
    batches = await asyncio.gather(*(due(ports, limit=2) for _ in range(5)))
    ids = [found.job_id for batch in batches for found in batch]
    assert sorted(ids) == sorted(job.job_id for job in jobs)
    assert max(len(batch) for batch in batches) == 2


async def test_what_a_sender_that_died_held_is_due_again_after_its_hold(ports: Ports) -> None:
    job = await running(ports, ENDS)
    await finish(ports, job)
    first = await due(ports, hold=20)
    found, seconds = await ports.webhooks.due(10, hold=20)
    assert found == []
    assert seconds == pytest.approx(20, abs=5)
    await ports.pass_time(21)
    assert await due(ports, hold=20) == first


async def test_a_sender_is_told_when_the_next_one_is_due(ports: Ports) -> None:
    jobs = [await running(ports, ENDS) for _ in range(2)]
    for job in jobs:
        await finish(ports, job)
    _, seconds = await ports.webhooks.due(1, hold=30)
    assert seconds == 0
    _, seconds = await ports.webhooks.due(1, hold=60)
    assert seconds == pytest.approx(30, abs=5)


async def test_a_try_that_failed_is_due_again_after_its_pause_with_its_count(ports: Ports) -> None:
    job = await running(ports, LIVE)
    await finish(ports, job)
    await due(ports)
    await ports.webhooks.settle(job.job_id, WebhookProgress(after=1, retry_in=20, attempt=3))
    found, seconds = await ports.webhooks.due(10, hold=30)
    assert found == []
    assert seconds == pytest.approx(20, abs=5)
    await ports.pass_time(21)
    assert await due(ports) == [DueWebhook(job.job_id, LIVE, after=1, attempt=3)]


async def test_an_event_that_comes_during_a_pause_does_not_cut_it_short(ports: Ports) -> None:
    job = await running(ports, LIVE)
    await due(ports)
    await ports.webhooks.settle(job.job_id, WebhookProgress(after=0, retry_in=20, attempt=1))
    await ports.ledger.append(job.job_id, 1, [body(job.job_id)], NO_VIEW)
    await finish(ports, job)
    assert await due(ports) == []
    await ports.pass_time(21)
    assert await due(ports) == [DueWebhook(job.job_id, LIVE, after=0, attempt=1)]


async def test_events_that_came_while_it_was_held_make_it_due_at_once(ports: Ports) -> None:
    job = await running(ports, LIVE)
    assert len(await due(ports)) == 1
    await ports.ledger.append(job.job_id, 1, [body(job.job_id)], NO_VIEW)
    assert await due(ports) == []  # held
    await ports.webhooks.settle(job.job_id, WebhookProgress(after=1))
    assert await due(ports) == [DueWebhook(job.job_id, LIVE, after=1, attempt=0)]


@pytest.mark.parametrize("status", ["done", "failed", "disabled"])
@pytest.mark.parametrize("webhook", [LIVE, ENDS], ids=["live", "ends"])
async def test_a_webhook_that_is_through_is_never_due_again(
    ports: Ports, webhook: Webhook, status: Literal["done", "failed", "disabled"]
) -> None:
    job = await running(ports, webhook)
    if webhook is ENDS:
        await finish(ports, job)
    await due(ports)
    await ports.webhooks.settle(job.job_id, WebhookProgress(after=1, status=status))
    if webhook is LIVE:
        await ports.ledger.append(job.job_id, 1, [body(job.job_id)], NO_VIEW)
        await finish(ports, job)
    assert await ports.webhooks.due(10, hold=30) == ([], None)
    report = (await shown(ports, job)).webhook
    assert report is not None
    assert report.status == status


async def test_the_record_shows_the_webhook_and_its_newest_tries_where_one_job_is_shown(ports: Ports) -> None:
    job = await running(ports, LIVE)
    before = (await shown(ports, job)).webhook
    assert before is not None
    assert (before.url, before.events, before.status, before.deliveries) == (LIVE.url, list(LIVE.events), "active", [])

    failed = delivery(1, error="connection refused")
    sent: Sequence[WebhookDelivery] = [delivery(1, attempt=2, status_code=204), delivery(2, status_code=200)]
    await ports.webhooks.settle(job.job_id, WebhookProgress(after=0, deliveries=[failed], retry_in=5, attempt=1))
    await ports.webhooks.settle(job.job_id, WebhookProgress(after=2, deliveries=sent))
    report = (await shown(ports, job)).webhook
    assert report is not None
    assert report.deliveries == [failed, *sent]
    [listed] = (await ports.ledger.find(JobQuery())).jobs
    assert listed.webhook == report.model_copy(update={"deliveries": []})


async def test_the_record_keeps_a_bounded_number_of_tries(ports: Ports) -> None:
    job = await running(ports, LIVE)
    for start in range(0, 200, 40):
        tries = [delivery(seq) for seq in range(start, start + 40)]
        await ports.webhooks.settle(job.job_id, WebhookProgress(after=start, deliveries=tries, retry_in=1))
    report = (await shown(ports, job)).webhook
    assert report is not None
    kept = [known.seq for known in report.deliveries]
    assert 20 <= len(kept) <= 100
    assert kept == list(range(200 - len(kept), 200))


async def test_a_webhook_whose_job_is_forgotten_is_forgotten_too(ports: Ports) -> None:
    job = await running(ports, ENDS)
    await finish(ports, job)
    await ports.expire_records()
    assert await due(ports) == []
    await ports.webhooks.settle(job.job_id, WebhookProgress(after=1, deliveries=[delivery(1)]))
    assert await ports.ledger.get(job.job_id) is None
    assert await ports.webhooks.due(10, hold=30) == ([], None)


async def test_a_sender_that_waits_hears_of_news(ports: Ports) -> None:
    jobs = [await running(ports, ENDS) for _ in range(2)]
    found: list[str] = []
    async with asyncio.timeout(10), ports.webhooks.news() as news:
        for job in jobs:
            await finish(ports, job)
            async for _ in news:  # it may come for nothing
                found += [webhook.job_id for webhook in await due(ports)]
                if job.job_id in found:
                    break
    assert found == [job.job_id for job in jobs]


async def test_the_news_end_when_the_process_closes(ports: Ports) -> None:
    async def listen() -> None:
        async with ports.webhooks.news() as news:
            listening.set()
            async for _ in news:
                pass

    listening = asyncio.Event()
    listener = asyncio.create_task(listen())
    await listening.wait()
    ports.close()
    async with asyncio.timeout(10):
        await listener


async def test_a_job_that_is_lost_and_runs_again_is_told_of_once_it_has_ended(ports: Ports) -> None:
    job = await running(ports, ENDS)
    await ports.ledger.release("worker", lost=True)
    assert await due(ports) == []
    await ports.ledger.claim("worker", 1)
    await ports.ledger.finish(job.job_id, 2, [], NO_VIEW, outcome(job.job_id, 2, JobStatus.FAILED))
    [found] = await due(ports)
    assert found.after < (await shown(ports, job)).last_seq
    assert EventType.PIPELINE_FAILED in found.webhook.events
