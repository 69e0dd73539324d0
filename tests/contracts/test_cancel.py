"""Cancelling a job in each state, and the race with its end."""

from __future__ import annotations

import asyncio

import pytest
from tests.contracts.stores import NO_VIEW, Ports, body, new_job, outcome
from tests.contracts.test_ledger import types

from pipeserve.events import EventType, decode, number
from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import Cancellation, LogEntry


async def test_a_pending_job_is_canceled_at_once_and_never_claimed(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    found = await ports.ledger.cancel(job.job_id, reason="changed my mind", by="me")
    assert found == Cancellation(JobStatus.CANCELED, already_finished=False)
    assert await ports.ledger.claim("owner", 5) == []
    ended = await ports.ledger.get(job.job_id)
    assert ended is not None
    assert ended.error is not None
    assert (ended.status, ended.cancel_reason, ended.canceled_by) == (JobStatus.CANCELED, "changed my mind", "me")
    assert ended.error.code == "canceled"
    assert await types(ports, job.job_id) == ["job_queued", "cancellation_requested", "pipeline_canceled"]


async def test_a_running_job_is_canceling_until_its_owner_ends_it(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    for _ in range(2):  # repeating it is harmless
        found = await ports.ledger.cancel(job.job_id, reason="stop")
        assert found == Cancellation(JobStatus.CANCELING, already_finished=False)
    await ports.ledger.append(job.job_id, 1, [body(job.job_id)], NO_VIEW)  # it may still say what it does
    assert await types(ports, job.job_id) == ["job_queued", "cancellation_requested", "log"]
    assert await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id, status=JobStatus.CANCELED))
    ended = await ports.ledger.get(job.job_id)
    assert ended is not None
    assert (ended.status, ended.cancel_reason) == (JobStatus.CANCELED, "stop")


@pytest.mark.parametrize("status", [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED])
async def test_a_finished_job_can_not_be_canceled(ports: Ports, status: JobStatus) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id, status=status))
    before = await ports.ledger.get(job.job_id)
    assert await ports.ledger.cancel(job.job_id) == Cancellation(status, already_finished=True)
    assert await ports.ledger.get(job.job_id) == before


async def test_an_accepted_cancel_wins_over_a_result_that_comes_after_it(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    await ports.ledger.cancel(job.job_id)
    before = await ports.ledger.get(job.job_id)
    assert not await ports.ledger.finish(job.job_id, 1, [body(job.job_id)], NO_VIEW, outcome(job.job_id))
    assert await ports.ledger.get(job.job_id) == before
    assert await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id, status=JobStatus.CANCELED))


async def test_finish_and_cancel_at_once_have_one_winner_that_both_know(ports: Ports) -> None:
    for _ in range(20):
        job = new_job()
        await ports.ledger.submit(job)
        await ports.ledger.claim("owner", 1)
        written, found = await asyncio.gather(
            ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id)), ports.ledger.cancel(job.job_id)
        )
        assert found is not None
        assert written == found.already_finished
        if not written:
            await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id, status=JobStatus.CANCELED))
        assert len([name for name in await types(ports, job.job_id) if name.startswith("pipeline_")]) == 1


async def test_owners_hear_of_an_accepted_cancel(ports: Ports) -> None:
    running, waiting = new_job(), new_job()
    await ports.ledger.submit(running)
    await ports.ledger.claim("owner", 1)
    await ports.ledger.submit(waiting)
    async with ports.signals.listen() as signals:
        await ports.ledger.cancel(waiting.job_id)  # nobody runs it, so nobody needs to hear
        await ports.ledger.cancel(running.job_id)
        async with asyncio.timeout(5):
            assert await anext(signals) == running.job_id
    await ports.ledger.release("owner", lost=False)


async def test_closing_the_log_ends_the_listeners(ports: Ports) -> None:
    async with ports.signals.listen() as signals:
        ports.close()
        async with asyncio.timeout(5):
            assert [job_id async for job_id in signals] == []


@pytest.mark.parametrize("reason", ['it\'s "enough" / genug für heute', None], ids=["reason", "none"])
async def test_the_request_and_the_end_of_a_cancel_name_its_reason(ports: Ports, reason: str | None) -> None:
    waiting, abandoned = new_job(), new_job()
    await ports.ledger.submit(abandoned)
    await ports.ledger.claim("owner", 1)
    await ports.ledger.submit(waiting)
    for job in (waiting, abandoned):
        await ports.ledger.cancel(job.job_id, reason=reason, by="me")
    await ports.ledger.release("owner", lost=True)
    for job in (waiting, abandoned):
        entries = await ports.log.read(job.job_id)
        events = [decode(number(entry.seq, entry.body)) for entry in entries if isinstance(entry, LogEntry)]
        requested, canceled = events[-2:]
        assert requested.event_type is EventType.CANCELLATION_REQUESTED
        assert (requested.message, requested.data) == (reason, {"reason": reason, "canceled_by": "me"})
        shown = await ports.ledger.get(job.job_id)
        assert shown is not None
        assert shown.error is not None
        assert shown.error == canceled.error
        assert shown.error.detail == f"The job was canceled{f': {reason}' if reason else '.'}"
        assert shown.error.job_id == job.job_id
