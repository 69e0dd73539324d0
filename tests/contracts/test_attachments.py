"""The visualizations of a job: who may add them, and how long they live."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from tests.contracts.stores import NO_VIEW, Ports, finished_run, new_job, outcome, picture

from pipeserve.errors import StaleAttemptError
from pipeserve.jobs import JobStatus

MARKER = b"a-marker-to-look-for"


async def claimed(ports: Ports, **changes: object) -> str:
    job = new_job(**changes)
    await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    return job.job_id


async def test_attachments_come_back_as_they_were_given_by_index(ports: Ports) -> None:
    job_id = await claimed(ports)
    pictures = [
        picture(2, name="Kurve\n“zwei”", step_name=None),
        picture(10, media_type="text/html", data=b""),
        picture(1),
    ]
    await ports.attachments.add(job_id, 1, pictures[:2])
    await ports.attachments.add(job_id, 1, pictures[2:])
    assert await ports.attachments.list(job_id) == [pictures[2], pictures[0], pictures[1]]
    assert await ports.attachments.get(job_id, 2) == pictures[0]
    assert await ports.attachments.get(job_id, 3) is None
    other = new_job().job_id
    assert (await ports.attachments.list(other), await ports.attachments.get(other, 1)) == ([], None)
    await ports.ledger.release("owner", lost=False)


async def test_an_attachment_with_an_index_that_is_there_replaces_it(ports: Ports) -> None:
    job_id = await claimed(ports)
    await ports.attachments.add(job_id, 1, [picture(1), picture(2)])
    newer = picture(1, name="newer", data=b"<p>")
    await ports.attachments.add(job_id, 1, [newer])
    assert await ports.attachments.list(job_id) == [newer, picture(2)]
    await ports.ledger.release("owner", lost=False)


async def test_only_the_attempt_that_owns_the_job_may_add(ports: Ports) -> None:
    job_id = await claimed(ports)
    await ports.attachments.add(job_id, 1, [picture(1)])
    await ports.ledger.release("owner", lost=True)
    for attempt in (1, 2):  # nobody owns it while it waits
        with pytest.raises(StaleAttemptError):
            await ports.attachments.add(job_id, attempt, [picture(2)])
    await ports.ledger.claim("other", 1)
    with pytest.raises(StaleAttemptError):
        await ports.attachments.add(job_id, 1, [picture(2)])
    await ports.attachments.add(job_id, 2, [picture(3)])
    assert [kept.index for kept in await ports.attachments.list(job_id)] == [1, 3]
    await ports.ledger.cancel(job_id)
    await ports.attachments.add(job_id, 2, [picture(4)])  # until it has stopped
    await ports.ledger.finish(job_id, 2, [], NO_VIEW, outcome(job_id, 2, JobStatus.CANCELED))
    for unowned in (job_id, new_job().job_id):
        with pytest.raises(StaleAttemptError):
            await ports.attachments.add(unowned, 2, [picture(5)])
    assert [kept.index for kept in await ports.attachments.list(job_id)] == [1, 3, 4]


@pytest.mark.parametrize("way", ["job", "open", "recorded", "opened and recorded", "worker lost"])
async def test_attachments_live_exactly_as_long_as_the_record(ports: Ports, way: str) -> None:
    run = replace(finished_run(time.time()), attachments=[picture(2, data=MARKER)])
    job_id = run.job.job_id
    first = [picture(1, data=MARKER)]
    if way == "recorded":
        await ports.ledger.record([run])
    else:
        if way == "job":
            await ports.ledger.submit(run.job)
            await ports.ledger.claim(run.owner, 1)
        else:
            await ports.ledger.open(run.job, run.owner)
        await ports.attachments.add(job_id, 1, first)
        await ports.expire_records()  # it is live, so nothing of it ages
        if way == "opened and recorded":
            await ports.ledger.record([run])
        elif way == "worker lost":
            await ports.ledger.release(run.owner, lost=True)
        else:
            await ports.ledger.finish(job_id, 1, [], NO_VIEW, outcome(job_id))
    job = await ports.ledger.get(job_id)
    assert job is not None
    assert job.status.terminal
    indexes = {"recorded": [2], "opened and recorded": [1, 2]}.get(way, [1])
    assert [kept.index for kept in await ports.attachments.list(job_id)] == indexes
    assert MARKER in await ports.everything()
    await ports.expire_records()
    assert await ports.ledger.get(job_id) is None
    assert await ports.attachments.list(job_id) == []
    assert MARKER not in await ports.everything()


async def test_a_job_without_events_keeps_no_attachments(ports: Ports) -> None:
    job_id = await claimed(ports, keep_events=False)
    await ports.attachments.add(job_id, 1, [picture(data=MARKER)])
    await ports.ledger.finish(job_id, 1, [], NO_VIEW, outcome(job_id))
    run = replace(finished_run(time.time(), keep_events=False), attachments=[picture(data=MARKER)])
    await ports.ledger.record([run])
    for kept in (job_id, run.job.job_id):
        assert await ports.attachments.list(kept) == []
    assert MARKER not in await ports.everything()


async def test_recording_a_run_again_adds_no_attachments(ports: Ports) -> None:
    run = replace(finished_run(time.time()), attachments=[picture(1)])
    await ports.ledger.record([run])
    await ports.ledger.record([replace(run, attachments=[picture(2)])])
    assert await ports.attachments.list(run.job.job_id) == [picture(1)]
