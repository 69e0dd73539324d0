"""One job's way through a ledger: submitted, claimed, written to, finished; and who may write when."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import orjson
import pytest
from tests.contracts.stores import NO_VIEW, Ports, body, new_job, numbers, outcome

from pipeserve.errors import QueueFullError, StaleAttemptError
from pipeserve.events import EventType, decode, encode_body, event_type_of, number
from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import Admission, LogEntry, RunView


async def types(ports: Ports, job_id: str) -> list[str]:
    entries = await ports.log.read(job_id)
    return [event_type_of(entry.body) for entry in entries if isinstance(entry, LogEntry)]


async def test_a_submitted_job_waits_with_its_position_and_its_first_event(ports: Ports) -> None:
    first, second = new_job(labels={"team": "red"}), new_job(timeout=3.5)
    assert await ports.ledger.submit(first) == Admission(first.job_id, replayed=False, queue_position=0)
    assert await ports.ledger.submit(second) == Admission(second.job_id, replayed=False, queue_position=1)

    job = await ports.ledger.get(first.job_id)
    assert job is not None
    assert (job.status, job.attempt, job.queue_position, job.last_seq) == (JobStatus.PENDING, 0, 0, 1)
    assert (job.parameters, job.labels, job.run_id) == ({"text": "hello"}, {"team": "red"}, first.job_id)
    assert job.progress.total_steps == 2
    assert abs((datetime.now(UTC) - job.created_at).total_seconds()) < 5
    assert await types(ports, first.job_id) == ["job_queued"]
    later = await ports.ledger.get(second.job_id)
    assert later is not None
    assert later.queue_position == 1


async def test_a_claim_says_what_its_request_wants_of_the_step_cache(ports: Ports) -> None:
    for cache in ("use", "no-cache", "no-store"):
        await ports.ledger.submit(new_job(cache=cache))
    assert [claim.cache for claim in await ports.ledger.claim("owner", 3)] == ["use", "no-cache", "no-store"]


async def test_submitting_the_same_id_again_changes_nothing(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.submit(job)
    assert len(await ports.ledger.claim("owner", 10)) == 1
    assert await types(ports, job.job_id) == ["job_queued"]


async def test_a_full_queue_refuses_the_next_job_and_keeps_nothing_of_it(ports: Ports) -> None:
    for _ in range(ports.max_queue_size):
        await ports.ledger.submit(new_job())
    refused = new_job()
    with pytest.raises(QueueFullError):
        await ports.ledger.submit(refused)
    assert await ports.ledger.get(refused.job_id) is None

    await ports.ledger.claim("owner", 1)  # a running job waits no more
    await ports.ledger.submit(refused)


async def test_an_unknown_job_is_none(ports: Ports) -> None:
    assert await ports.ledger.get(new_job().job_id) is None
    assert await ports.ledger.cancel(new_job().job_id) is None


async def test_a_claim_hands_over_all_that_a_worker_needs_oldest_first(ports: Ports) -> None:
    jobs = [new_job(run_name=f"run {n}", timeout=1.5) for n in range(3)]
    for job in jobs:
        await ports.ledger.submit(job)
    claims = await ports.ledger.claim("host:1:a", 2)
    assert [claim.job_id for claim in claims] == [job.job_id for job in jobs[:2]]
    assert {(claim.attempt, claim.parameters, claim.timeout) for claim in claims} == {(1, b'{"text":"hello"}', 1.5)}
    assert claims[1].run_name == "run 1"
    assert claims[0].claimed_at >= claims[0].created_at

    job = await ports.ledger.get(jobs[0].job_id)
    assert job is not None
    assert (job.status, job.attempt, job.worker, job.queue_position) == (JobStatus.RUNNING, 1, "host:1:a", None)
    assert job.started_at is not None


async def test_two_workers_never_get_the_same_job(ports: Ports) -> None:
    for _ in range(40):
        await ports.ledger.submit(new_job())
    batches = await asyncio.gather(*(ports.ledger.claim(f"owner {n}", 3) for n in range(20)))
    ids = [claim.job_id for batch in batches for claim in batch]
    assert len(ids) == len(set(ids)) == 40


async def test_a_claim_says_when_the_next_job_is_due(ports: Ports) -> None:
    await ports.ledger.submit(new_job())
    await ports.ledger.submit(new_job())
    claims, next_due = await ports.ledger.claim_batch("owner", 1)
    assert next_due == pytest.approx(claims[0].created_at * 1000, abs=2000)
    assert (await ports.ledger.claim_batch("owner", 1))[1] is None


async def test_appended_events_are_numbered_and_the_view_shows_in_the_record(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    [claim] = await ports.ledger.claim("owner", 1)
    view = RunView(
        progress=b'{"completed_steps":1,"total_steps":2,"percent":50.0,"current_steps":["b"]}',
        steps=b'[{"name":"a","status":"completed","duration":0.5}]',
    )
    assert await ports.ledger.append(job.job_id, claim.attempt, [body(job.job_id), body(job.job_id)], view) == 3
    assert await ports.ledger.append(job.job_id, claim.attempt, [body(job.job_id)], NO_VIEW) == 4
    assert numbers(await ports.log.read(job.job_id)) == [1, 2, 3, 4]

    shown = await ports.ledger.get(job.job_id)
    assert shown is not None
    assert (shown.progress.percent, shown.progress.current_steps, shown.last_seq) == (50.0, ["b"], 4)
    assert [(step.name, step.duration) for step in shown.steps] == [("a", 0.5)]


async def test_concurrent_writers_leave_no_hole_and_no_double_in_the_numbering(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    await asyncio.gather(
        *(
            ports.ledger.append(job.job_id, 1, [body(job.job_id, message=f"{writer} {n}") for n in range(3)], NO_VIEW)
            for writer in range(30)
        )
    )
    entries = await ports.log.read(job.job_id)
    assert numbers(entries) == list(range(1, 92))
    assert len({entry.body for entry in entries if isinstance(entry, LogEntry)}) == 91


@pytest.mark.parametrize("status", [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.TIMED_OUT, JobStatus.CANCELED])
async def test_finish_writes_state_result_and_terminal_event_together(ports: Ports, status: JobStatus) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    assert await ports.ledger.finish(job.job_id, 1, [body(job.job_id)], NO_VIEW, outcome(job.job_id, status=status))
    ended = await ports.ledger.get(job.job_id)
    assert ended is not None
    assert (ended.status, ended.execution_time, ended.last_seq) == (status, 0.25, 3)
    assert ended.outputs == ({"output": 42} if status is JobStatus.COMPLETED else None)
    assert (ended.error is not None) == (status is JobStatus.FAILED)
    assert ended.completed_at is not None
    assert (await types(ports, job.job_id))[-1] == f"pipeline_{status}"
    assert await ports.ledger.claim("other", 5) == []


async def test_the_last_view_of_a_run_is_written_with_its_end(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("worker", 1)
    early = RunView(progress=b'{"completed_steps":0,"percent":0.0}', steps=b'[{"name":"double","status":"running"}]')
    await ports.ledger.append(job.job_id, 1, [body(job.job_id)], early)
    late = RunView(progress=b'{"completed_steps":1,"percent":50.0}', steps=b'[{"name":"double","status":"canceled"}]')
    await ports.ledger.cancel(job.job_id)
    assert await ports.ledger.finish(job.job_id, 1, [], late, outcome(job.job_id, status=JobStatus.CANCELED))
    ended = await ports.ledger.get(job.job_id)
    assert ended is not None
    assert [(step.name, step.status) for step in ended.steps] == [("double", "canceled")]
    assert ended.progress.percent == 50.0


async def test_a_finish_repeated_by_the_same_attempt_is_written_once(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    for _ in range(2):
        assert await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
    assert await types(ports, job.job_id) == ["job_queued", "pipeline_completed"]
    with pytest.raises(StaleAttemptError):
        await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id, status=JobStatus.FAILED))


async def test_an_attempt_that_lost_its_job_can_write_nothing(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("old", 1)
    await ports.ledger.release("old", lost=True)
    for attempt in (1, 2):  # while it waits, nobody may write, not even the attempt to come
        with pytest.raises(StaleAttemptError):
            await ports.ledger.append(job.job_id, attempt, [body(job.job_id)], NO_VIEW)
    [claim] = await ports.ledger.claim("new", 1)
    assert claim.attempt == 2
    before = await ports.ledger.get(job.job_id)
    with pytest.raises(StaleAttemptError):
        await ports.ledger.append(job.job_id, 1, [body(job.job_id)], RunView(progress=b"{}"))
    with pytest.raises(StaleAttemptError):
        await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
    assert before is not None
    fenced = before.model_copy(update={"fenced_writes": before.fenced_writes + 2})
    assert await ports.ledger.get(job.job_id) == fenced
    assert await ports.ledger.finish(job.job_id, 2, [], NO_VIEW, outcome(job.job_id, 2))


async def test_nothing_can_be_written_after_the_end(ports: Ports) -> None:
    job = new_job()
    await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
    with pytest.raises(StaleAttemptError):
        await ports.ledger.append(job.job_id, 1, [body(job.job_id)], NO_VIEW)
    with pytest.raises(StaleAttemptError):
        await ports.ledger.append(new_job().job_id, 1, [body(job.job_id)], NO_VIEW)


async def test_without_events_the_log_holds_the_terminal_event_only(ports: Ports) -> None:
    job = new_job(keep_events=False)
    await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    await ports.ledger.append(job.job_id, 1, [body(job.job_id)], RunView(progress=b'{"message":"secret"}'))
    await ports.ledger.finish(job.job_id, 1, [body(job.job_id)], NO_VIEW, outcome(job.job_id))
    assert await types(ports, job.job_id) == ["pipeline_completed"]
    assert numbers(await ports.log.read(job.job_id)) == [1]
    assert b"secret" not in await ports.everything()


async def test_parameters_that_are_not_kept_leave_every_key_when_the_job_finishes(ports: Ports) -> None:
    job = new_job(keep_parameters=False, parameters=b'{"text":"a-marker-to-look-for"}')
    await ports.ledger.submit(job)
    shown = await ports.ledger.get(job.job_id)
    assert shown is not None
    assert shown.parameters is None
    [claim] = await ports.ledger.claim("owner", 1)
    assert b"a-marker-to-look-for" in claim.parameters
    assert b"a-marker-to-look-for" in await ports.everything()
    await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
    assert b"a-marker-to-look-for" not in await ports.everything()


async def test_events_that_the_store_makes_look_like_any_other_event(ports: Ports) -> None:
    job = new_job(max_attempts=2)
    await ports.ledger.submit(job)
    for owner in ("a", "b"):
        await ports.ledger.claim(owner, 1)
        await ports.ledger.release(owner, lost=True)
    canceled = new_job()
    await ports.ledger.submit(canceled)
    await ports.ledger.cancel(canceled.job_id, reason='say "why" \n ✓', by="me")

    entries = [*await ports.log.read(job.job_id), *await ports.log.read(canceled.job_id)]
    seen: set[EventType] = set()
    for entry in entries:
        assert isinstance(entry, LogEntry)
        event = decode(number(entry.seq, entry.body))
        assert encode_body(event) == entry.body
        assert abs(event.timestamp - datetime.now(UTC).timestamp()) < 5
        seen.add(event.event_type)
    assert seen == {
        EventType.JOB_QUEUED,
        EventType.ATTEMPT_LOST,
        EventType.PIPELINE_FAILED,
        EventType.CANCELLATION_REQUESTED,
        EventType.PIPELINE_CANCELED,
    }
    assert isinstance(entries[-2], LogEntry)
    assert orjson.loads(entries[-2].body)["data"] == {"reason": 'say "why" \n ✓', "canceled_by": "me"}
