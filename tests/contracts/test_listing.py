"""Finding jobs, and the figures over all of them."""

from __future__ import annotations

import pytest
from tests.contracts.stores import NO_VIEW, Ports, new_job, outcome

from pipeserve.errors import BadRequestError
from pipeserve.jobs import JobStatus
from pipeserve.runtime.latency import histogram
from pipeserve.runtime.ports import JobQuery


async def found(ports: Ports, query: JobQuery) -> tuple[list[str], int]:
    page = await ports.ledger.find(query)
    return [job.job_id for job in page.jobs], page.total


async def test_jobs_are_found_newest_first_by_status_and_labels(ports: Ports) -> None:
    red, blue, plain = new_job(labels={"team": "red", "tier": "1"}), new_job(labels={"team": "blue"}), new_job()
    for job in (red, blue, plain):
        await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    assert await found(ports, JobQuery()) == ([plain.job_id, blue.job_id, red.job_id], 3)
    assert await found(ports, JobQuery(status=JobStatus.RUNNING)) == ([red.job_id], 1)
    assert await found(ports, JobQuery(status=JobStatus.FAILED)) == ([], 0)
    assert await found(ports, JobQuery(labels={"team": "red"})) == ([red.job_id], 1)
    assert await found(ports, JobQuery(labels={"team": "red", "tier": "2"})) == ([], 0)
    assert await found(ports, JobQuery(status=JobStatus.PENDING, labels={"team": "red"})) == ([], 0)


async def test_jobs_are_found_by_the_code_of_the_error_they_ended_with(ports: Ports) -> None:
    lost = [new_job(max_attempts=1, labels={"team": team}) for team in ("red", "blue", "red")]
    broke, well, waits = new_job(), new_job(), new_job()
    for job in (*lost, broke, well, waits):
        await ports.ledger.submit(job)
    await ports.ledger.claim("dies", 3)
    await ports.ledger.release("dies", lost=True)
    await ports.ledger.claim("worker", 2)
    await ports.ledger.finish(broke.job_id, 1, [], NO_VIEW, outcome(broke.job_id, status=JobStatus.FAILED))
    await ports.ledger.finish(well.job_id, 1, [], NO_VIEW, outcome(well.job_id))

    newest_first = [job.job_id for job in reversed(lost)]
    assert await found(ports, JobQuery(code="worker_lost")) == (newest_first, 3)
    assert await found(ports, JobQuery(status=JobStatus.FAILED, code="step_failed")) == ([broke.job_id], 1)
    assert await found(ports, JobQuery(status=JobStatus.COMPLETED, code="step_failed")) == ([], 0)
    red = JobQuery(code="worker_lost", labels={"team": "red"})
    assert await found(ports, red) == ([lost[2].job_id, lost[0].job_id], 2)

    page = await ports.ledger.find(JobQuery(code="worker_lost", limit=2))
    rest = await ports.ledger.find(JobQuery(code="worker_lost", limit=2, cursor=page.next_cursor))
    assert [job.job_id for job in (*page.jobs, *rest.jobs)] == newest_first
    assert (page.total, rest.total, rest.next_cursor) == (3, 3, None)


@pytest.mark.parametrize("labels", [{}, {"kind": "test"}])
async def test_pages_follow_each_other_without_hole_or_repeat_while_jobs_come(
    ports: Ports, labels: dict[str, str]
) -> None:
    jobs = [new_job(labels={"kind": "test"}) for _ in range(25)]
    for job in jobs:
        await ports.ledger.submit(job)
    seen: list[str] = []
    cursor: str | None = None
    for expected_total in (25, 26, 27):
        page = await ports.ledger.find(JobQuery(labels=labels, limit=10, cursor=cursor))
        assert page.total == expected_total
        seen += [job.job_id for job in page.jobs]
        cursor = page.next_cursor
        await ports.ledger.submit(new_job(labels={"kind": "test"}))
    assert cursor is None
    assert seen == [job.job_id for job in reversed(jobs)]


async def test_a_cursor_that_is_none_is_refused(ports: Ports) -> None:
    for cursor in ("nonsense", "!", "é", "bmFuOng", "nan:x", "aW5mOng"):
        with pytest.raises(BadRequestError):
            await ports.ledger.find(JobQuery(cursor=cursor))


async def test_a_fresh_deployment_has_empty_figures(ports: Ports) -> None:
    figures = await ports.operations.figures()
    assert (figures.completed, figures.failed, figures.canceled, figures.queue_depth) == (0, 0, 0, 0)
    assert (figures.oldest_job_age, figures.last_execution, dict(figures.latency)) == (0.0, None, {})
    assert set(figures.jobs_by_status) == {status.value for status in JobStatus}
    assert list(figures.workers) == []


async def test_figures_count_what_happened(ports: Ports) -> None:
    ends = [JobStatus.COMPLETED, JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.TIMED_OUT, JobStatus.CANCELED]
    for status in ends:
        job = new_job()
        await ports.ledger.submit(job)
        await ports.ledger.claim("owner", 1)
        ended = outcome(job.job_id, status=status, latencies={"async": [0.1] * 98 + [2.0, 2.0], "pickup": [0.001]})
        await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, ended)
    for _ in range(3):
        await ports.ledger.submit(new_job())
    await ports.ledger.claim("owner", 1)

    figures = await ports.operations.figures()
    assert (figures.completed, figures.failed, figures.canceled) == (2, 2, 1)
    assert figures.execution_seconds == pytest.approx(0.5)
    assert figures.queue_depth == 2
    assert 0 <= figures.oldest_job_age < 5
    assert figures.last_execution is not None
    assert figures.jobs_by_status["completed"] == 2
    assert figures.jobs_by_status["running"] == 1
    assert figures.jobs_by_status["pending"] == 2
    assert figures.latency["async"].p50 == pytest.approx(0.1, rel=0.1)
    assert figures.latency["async"].p99 == pytest.approx(2.0, rel=0.1)
    assert figures.latency["pickup"].p95 == pytest.approx(0.001, rel=0.1)


async def test_figures_hold_the_histograms_of_what_was_observed(ports: Ports) -> None:
    observed = {"async": [0.1, 0.1, 3.0], "run": [0.25], "step/double": [0.5]}
    for _ in range(2):
        job = new_job()
        await ports.ledger.submit(job)
        await ports.ledger.claim("worker", 1)
        await ports.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id, latencies=observed))
    durations = (await ports.operations.figures()).durations
    once = {kind: histogram(seconds) for kind, seconds in observed.items()}
    assert durations == {kind: {at: 2 * n for at, n in buckets.items()} for kind, buckets in once.items()}


async def test_the_report_of_the_last_drill_is_kept(ports: Ports) -> None:
    assert await ports.operations.last_drill() is None
    for kills in (1, 2):
        await ports.operations.tell_drill(b'{"kills":%d,"lost":[]}' % kills)
    assert await ports.operations.last_drill() == {"kills": 2, "lost": []}


async def test_a_store_that_is_fit_has_no_findings_and_says_what_it_is(ports: Ports) -> None:
    assert await ports.operations.check() == []
    assert ports.operations.describe()["kind"] in ("memory", "redis")


async def test_a_record_that_is_no_json_is_listed_without_it_and_told_once(
    ports: Ports, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [new_job(), new_job(parameters=b'{"f":inf}'), new_job(parameters=b"[1]"), new_job()]
    for job in jobs:
        await ports.ledger.submit(job)
    page = await ports.ledger.find(JobQuery())
    assert [job.parameters for job in page.jobs] == [{"text": "hello"}, None, None, {"text": "hello"}]
    assert await ports.ledger.get(jobs[1].job_id) == page.jobs[2]
    told = [record.getMessage() for record in caplog.records if "can't be read" in record.getMessage()]
    assert len(told) == 2
    assert sum(jobs[1].job_id in line and "parameters" in line for line in told) == 1


async def test_integers_of_any_size_are_shown_as_they_were_sent(ports: Ports) -> None:
    job = new_job(parameters=b'{"n":1234567890123456789012345678901}')
    await ports.ledger.submit(job)
    shown = await ports.ledger.get(job.job_id)
    assert shown is not None
    assert shown.parameters == {"n": 1234567890123456789012345678901}


async def test_each_caller_finds_its_own_jobs(ports: Ports) -> None:
    ours = [new_job(caller="team-a", labels={"n": str(number)}) for number in range(5)]
    theirs, nobodys = new_job(caller="team"), new_job()
    for job in (ours[0], theirs, *ours[1:], nobodys):
        await ports.ledger.submit(job)
    await ports.ledger.claim("owner", 1)
    newest_first = [job.job_id for job in reversed(ours)]
    assert await found(ports, JobQuery(caller="team-a")) == (newest_first, 5)
    assert await found(ports, JobQuery(caller="team")) == ([theirs.job_id], 1)
    assert await found(ports, JobQuery(caller="tea")) == ([], 0)
    assert await found(ports, JobQuery(caller="team-a", status=JobStatus.RUNNING)) == ([ours[0].job_id], 1)
    assert await found(ports, JobQuery(caller="team-a", status=JobStatus.PENDING)) == (newest_first[:-1], 4)
    assert await found(ports, JobQuery(caller="team-a", labels={"n": "3"})) == ([ours[3].job_id], 1)
    job = await ports.ledger.get(ours[1].job_id)
    assert job is not None
    assert job.caller == "team-a"
    told = await ports.ledger.get(nobodys.job_id)
    assert told is not None
    assert told.caller is None


@pytest.mark.parametrize("status", [None, JobStatus.PENDING])
async def test_a_callers_pages_have_each_job_once(ports: Ports, status: JobStatus | None) -> None:
    ours: list[str] = []
    for number in range(11):
        job = new_job(caller="a" if number % 3 else "b")
        await ports.ledger.submit(job)
        if number % 3:
            ours.append(job.job_id)
    seen: list[str] = []
    cursor = None
    while True:
        page = await ports.ledger.find(JobQuery(caller="a", status=status, limit=2, cursor=cursor))
        assert page.total == len(ours)
        seen += [job.job_id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ours[::-1]
