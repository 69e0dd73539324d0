"""``GET /jobs/{id}/explain``: the sentences and figures by themselves, and the route."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from tests.api.harness import serving, wait_until
from tests.api.pipelines import gated, quiet, rest, secretive
from tests.api.worker import working

from pipeserve import Batch, Cache, Capture, Retry, Secret, pipeline, step
from pipeserve.errors import Problem, StaleAttemptError
from pipeserve.jobs import CacheReceipt, Eta, Job, JobStatus, Links, StepReport
from pipeserve.runtime.ports import RunView
from pipeserve.runtime.recording.run_view import STEPS_SHOWN
from pipeserve_api.explain import explain
from pipeserve_api.models import Explanation

BEGAN = datetime(2026, 1, 31, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


@step
def left(x: int) -> int:
    return x


@step
def right(x: int) -> int:
    return x


@step
def join(a: int, b: int) -> int:
    return a + b


@pipeline
def diamond(x: int) -> int:
    start = left.with_name("start")(x)
    return join(left(start), right(start))


@pipeline(capture=Capture(metadata=False))
def unkept(x: int) -> int:
    return left(x)


def job(*steps: StepReport, **changes: Any) -> Job:
    """A job that waited for 12 ms and then ran for 1.24 s."""
    members: dict[str, Any] = {
        "job_id": "0199",
        "run_id": "0199",
        "run_name": "test",
        "status": JobStatus.COMPLETED,
        "pipeline_name": "diamond",
        "deployment_id": "d",
        "created_at": BEGAN,
        "started_at": at(0.012),
        "completed_at": at(1.252),
        "attempt": 1,
        "max_attempts": 3,
        "execution_time": 1.24,
        "steps": list(steps),
        "links": Links.of("0199"),
    }
    return Job(**(members | changes))


def call(name: str, start: float, duration: float | None, status: str = "completed", **changes: Any) -> StepReport:
    return StepReport(name=name, status=status, started_at=at(start), duration=duration, **changes)


def explained(found: Job, *, ends: list[str] | None = None, served: Any = diamond, now: float = 6) -> Explanation:
    members = explain(found, served.definition, now=at(now), ends=[] if ends is None else ends)
    return Explanation(**orjson.loads(orjson.dumps(members, option=orjson.OPT_UTC_Z)))


def problem(code: str, detail: str) -> Problem:
    return Problem(type=f"urn:pipeserve:problem:{code}", title="", status=500, detail=detail, code=code)


# ---- where the time went


def test_a_run_is_told_from_its_wait_to_its_slowest_step():
    found = explained(
        job(call("start", 0.02, 0.2), call("left", 0.22, 0.6), call("right", 0.22, 0.1), call("join", 0.82, 0.4))
    )
    assert found.summary == [
        "It waited 0.012 s in the queue, then ran for 1.240 s.",
        "The slowest step was left: 0.600 s, 48% of the run.",
        "Steps ran in parallel: 1.300 s of work in 1.200 s.",
        "These followed on each other and decided how long it took: start, left, join.",
    ]
    timing = found.timing
    assert (timing.queued, timing.total, timing.running) == (0.012, 1.252, 1.24)
    assert timing.startup == pytest.approx(0.008, abs=1e-5)
    assert timing.steps_total == pytest.approx(1.3, abs=1e-5)
    assert timing.steps_elapsed == pytest.approx(1.2, abs=1e-5)
    assert timing.overhead == pytest.approx(0.04, abs=1e-5)
    assert [step.started_after for step in found.steps] == pytest.approx([0.008, 0.208, 0.208, 0.808], abs=1e-5)
    assert found.steps[1].share == pytest.approx(0.6 / 1.24, abs=1e-5)


def test_a_synchronous_run_did_not_wait():
    found = explained(job(started_at=BEGAN, completed_at=at(1.24)))
    assert found.summary == ["It ran for 1.240 s."]


def test_much_time_outside_the_steps_is_told():
    assert "1.140 s of the run passed outside its steps." in explained(job(call("start", 0.02, 0.1))).summary


@pytest.mark.parametrize(
    ("position", "sentence"),
    [
        (0, "It has waited 6.000 s for a worker, and it is the next."),
        (1, "It has waited 6.000 s for a worker, and 1 job is before it."),
        (3, "It has waited 6.000 s for a worker, and 3 jobs are before it."),
    ],
)
def test_a_job_that_waits_says_how_many_are_before_it(position: int, sentence: str):
    waiting = {"status": JobStatus.PENDING, "started_at": None, "completed_at": None, "execution_time": None}
    found = explained(job(attempt=0, queue_position=position, **waiting))
    assert found.summary == [sentence]
    assert (found.timing.queued, found.timing.running, found.steps) == (6.0, None, [])


WAITING = {"status": JobStatus.PENDING, "attempt": 0, "started_at": None, "completed_at": None, "execution_time": None}


def test_a_scheduled_job_waits_for_its_time():
    found = explained(job(run_at=at(66), **WAITING))
    assert found.summary == ["It is not to start for another 60.000 s."]
    assert (found.timing.scheduled, found.timing.queued) == (6.0, 0.0)
    assert found.waiting is not None
    assert (found.waiting.queue_position, found.waiting.run_at) == (None, "2026-01-31T12:01:06Z")


def test_the_time_before_it_was_due_is_not_waiting():
    found = explained(job(run_at=at(4), queue_position=0, **WAITING))
    assert found.summary[0] == "It has waited 2.000 s for a worker, and it is the next."
    assert (found.timing.total, found.timing.scheduled, found.timing.queued) == (6.0, 4.0, 2.0)
    ran = explained(job(run_at=at(0.01)))
    assert ran.summary == ["It waited 0.002 s in the queue, then ran for 1.240 s."]


def test_a_job_that_waits_says_on_what_terms():
    terms = {"labels": {"tenant": "acme"}, "priority": 5, "expires_at": at(36), "eta": Eta(p50=12.3, p90=31)}
    found = explained(job(queue_position=3, **terms, **WAITING))
    assert found.summary == [
        "It has waited 6.000 s for a worker, and 3 jobs are before it; "
        "the jobs of tenant acme take turns with those of others.",
        "Its priority of 5 puts it where 300 s more of waiting would.",
        "It expires if it has not begun in 30.000 s.",
        "It will have ended in 12 s as likely as not, and in 31 s nine times in ten.",
    ]
    assert found.waiting is not None
    assert (found.waiting.tenant, found.waiting.priority, found.waiting.queue_position) == ("acme", 5, 3)
    assert found.waiting.expires_at == "2026-01-31T12:00:36Z"
    assert found.eta == Eta(p50=12.3, p90=31)


def test_a_low_priority_is_told_as_what_it_costs():
    summary = explained(job(queue_position=0, priority=-1, **WAITING)).summary
    assert "Its priority of -1 has others pass it for 60 s." in summary


def test_a_job_that_does_not_wait_tells_nothing_of_waiting():
    found = explained(job(priority=5, expires_at=at(90)))
    assert (found.waiting, found.eta, found.retried_from, found.webhook) == (None, None, None, None)
    assert found.summary == ["It waited 0.012 s in the queue, then ran for 1.240 s."]


def test_a_running_job_says_what_runs_and_what_is_to_come():
    running = {"status": JobStatus.RUNNING, "completed_at": None, "execution_time": None}
    found = explained(job(call("start", 0.02, 0.2), call("left", 0.22, None, "running"), **running))
    assert found.summary == [
        "It waited 0.012 s in the queue, then ran for 5.988 s so far.",
        "Now running: left.",
        "The slowest step was left: 5.780 s, 97% of the run.",
        "Not started yet: right and join.",
    ]
    assert found.steps[1].duration == pytest.approx(5.78, abs=1e-5)
    assert found.steps[1].words == "still running"


# ---- how it ended


def test_a_failed_job_says_why_and_what_was_not_started():
    error = problem("step_failed", "step 'left' failed: ValueError: no")
    found = explained(job(call("left", 0.02, 1.2, "failed"), status=JobStatus.FAILED, error=error))
    assert found.summary[1:] == [
        "It failed: step 'left' failed: ValueError: no.",
        "Not started: start, right and join.",
    ]


def test_a_job_that_was_canceled_in_the_queue_never_ran():
    ended = {"status": JobStatus.CANCELED, "started_at": None, "execution_time": None, "completed_at": at(3)}
    found = explained(job(attempt=0, canceled_by="caller", cancel_reason="no longer needed", **ended))
    assert found.summary == [
        "It waited 3.000 s in the queue and never ran.",
        "It was canceled by caller: no longer needed.",
    ]


def test_a_timeout_is_named():
    error = problem("timed_out", "step 'left' took longer than its timeout of 1 s.")
    found = explained(job(call("left", 0.02, 1.0, "timed_out"), status=JobStatus.TIMED_OUT, error=error))
    assert "It was stopped by a timeout: step 'left' took longer than its timeout of 1 s." in found.summary
    assert found.steps[0].words == "stopped by a timeout"


@pytest.mark.parametrize(
    ("ends", "words", "lost", "handed_back"),
    [
        (["worker_died"], "an earlier attempt was lost", 1, 0),
        (["drained"], "an earlier attempt was handed back by a worker that stopped", 0, 1),
        ([], "an earlier attempt was not ended", 0, 0),
    ],
)
def test_a_second_attempt_says_what_became_of_the_first(ends: list[str], words: str, lost: int, handed_back: int):
    found = explained(job(call("left", 3.77, 1.2), attempt=2, completed_at=at(5)), ends=ends)
    assert found.summary[0] == (
        "It waited 0.012 s in the queue, then ran for 1.240 s in attempt 2, which began 3.748 s after the first; "
        f"{words}."
    )
    assert (found.attempts.lost, found.attempts.handed_back) == (lost, handed_back)
    assert found.timing.earlier_attempts == pytest.approx(3.748, abs=1e-5)


def test_the_loss_of_the_last_attempt_is_not_counted_as_an_earlier_one():
    error = problem("worker_lost", "The process that ran the job died, and no attempt is left.")
    ended = {"status": JobStatus.FAILED, "error": error, "execution_time": None}
    found = explained(job(attempt=2, **ended), ends=["worker_died", "worker_died"])
    assert "an earlier attempt was lost" in found.summary[0]
    assert found.summary[1] == "It failed: The process that ran the job died, and no attempt is left."


@pytest.mark.parametrize(
    ("writes", "sentence"),
    [
        (1, "1 late write of an attempt that had lost the job was refused."),
        (2, "2 late writes of an attempt that had lost the job were refused."),
    ],
)
def test_writes_that_were_refused_are_told(writes: int, sentence: str):
    found = explained(job(attempt=2, fenced_writes=writes, completed_at=at(5)), ends=["lease_expired"])
    assert sentence in found.summary
    assert found.attempts.fenced_writes == writes


def test_a_retry_names_the_job_that_it_retries():
    found = explained(job(retried_from="0198"))
    assert "It has the input of job 0198, to try that again." in found.summary
    assert found.retried_from == "0198"


# ---- its webhook


@pytest.mark.parametrize(
    ("status", "last", "words"),
    [
        ("active", None, "nothing was sent yet"),
        ("done", None, "nothing was sent"),
        ("active", {"status_code": 204}, "pipeline_completed was delivered, the answer was 204"),
        (
            "active",
            {"error": "Timed out.", "attempt": 3},
            "pipeline_completed was not delivered, 3 tries, timed out",
        ),
        (
            "failed",
            {"error": "HTTP 500", "status_code": 500, "attempt": 1},
            "pipeline_completed was not delivered, 1 try, the answer was 500; no more tries are made",
        ),
        (
            "disabled",
            {"error": "HTTP 410", "status_code": 410},
            "pipeline_completed was not delivered, 1 try, the answer was 410; nothing more is sent",
        ),
    ],
)
def test_a_webhook_says_what_became_of_it(status: str, last: dict[str, Any] | None, words: str):
    deliveries = (
        [] if last is None else [{"seq": 4, "event_type": "pipeline_completed", "attempt": 1, "at": BEGAN} | last]
    )
    webhook = {"url": "https://example.org/s3cret", "events": ["pipeline_completed"], "status": status}
    found = explained(job(webhook=webhook | {"deliveries": deliveries}))
    assert f"Webhook: {words}." in found.summary
    assert found.webhook is not None
    assert (found.webhook.status, found.webhook.words) == (status, words)
    assert (found.webhook.last is None) == (last is None)
    assert "s3cret" not in found.model_dump_json()


# ---- what its policies did


@pytest.mark.parametrize(
    ("receipt", "words"),
    [
        (
            {"status": "miss", "reason": "changed", "changed": ["text"], "stored": True},
            "cache miss, because argument text differs from the nearest earlier call",
        ),
        (
            {"status": "miss", "reason": "changed", "changed": ["code", "k", "text"], "stored": True},
            "cache miss, because its code and arguments k and text differ from the nearest earlier call",
        ),
        (
            {"status": "miss", "reason": "changed", "changed": ["key"], "stored": True},
            "cache miss, because its key differs from the nearest earlier call",
        ),
        (
            {"status": "miss", "reason": "first_call"},
            "cache miss, because this process had no earlier call of the step; the result was not kept",
        ),
        ({"status": "miss", "reason": "expired", "stored": True}, "cache miss, because the value had expired"),
        (
            {"status": "miss", "reason": "evicted", "stored": True},
            "cache miss, because there was no room for the value, or no longer",
        ),
        (
            {"status": "miss", "reason": "unhashable", "changed": ["f"], "detail": "The call can't be cached: why."},
            "the call can't be cached: why",
        ),
        ({"status": "hit", "saved": 0.31, "age": 12.3}, "cache hit, 0.310 s saved, the value was 12 s old"),
        (
            {"status": "shared_hit", "saved": 0.31},
            "cache hit, 0.310 s saved, from the cache that all processes share",
        ),
        ({"status": "joined", "saved": 0.31}, "an equal call was under way, and its result was used"),
        ({"status": "bypass", "stored": True}, "the cache was not asked, because the request said so"),
        ({"status": "bypass"}, "the cache was not asked, because the request said so; the result was not kept"),
    ],
)
def test_each_receipt_of_the_cache_has_its_words(receipt: dict[str, Any], words: str):
    found = explained(job(call("left", 0.02, 1.2, cache=CacheReceipt(**receipt))))
    cache = found.steps[0].cache
    assert cache is not None
    assert (cache.status, cache.words) == (receipt["status"], words)
    assert f"left: {words}." in found.summary


def test_hits_misses_and_saved_time_are_added_up():
    hit, joined = CacheReceipt(status="hit", saved=0.5), CacheReceipt(status="joined", saved=0.25)
    miss = CacheReceipt(status="miss", reason="first_call", stored=True)
    calls = [
        call("left", 0.02, 0.1, cache=hit),
        call("right", 0.02, 0.1, cache=joined),
        call("join", 0.2, 1, cache=miss),
    ]
    found = explained(job(*calls))
    assert (found.cache.hits, found.cache.misses, found.cache.saved) == (2, 1, 0.75)
    assert "The step cache saved 0.750 s of work." in found.summary


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"calls": 2}, "called twice, one call failed"),
        ({"calls": 3}, "called 3 times, two calls failed"),
        ({"calls": 3, "status": "failed"}, "called 3 times, every call failed; failed"),
        ({"resumed": True}, "not run again, an earlier attempt had recorded its result"),
        ({"batch": 5}, "gathered with 4 other calls into one"),
        ({"batch": 1}, "called alone, no other call came in time"),
        ({}, "ran"),
    ],
)
def test_each_policy_has_its_words(changes: dict[str, Any], words: str):
    assert explained(job(call("left", 0.02, 1.2, **changes))).steps[0].words == words


# ---- what is not kept


def test_without_metadata_it_says_that_nothing_was_kept():
    found = explained(job(), served=unkept)
    assert "Nothing was kept of its steps: the pipeline has Capture(metadata=False)." in found.summary


def test_a_record_that_is_full_says_so():
    many = [call(f"left_{number}", 0.02, 0.001) for number in range(STEPS_SHOWN)]
    assert f"Its record lists the newest {STEPS_SHOWN} steps only." in explained(job(*many)).summary


# ---- over HTTP


async def explanation(service: Any, job_id: str) -> Explanation:
    answer = await service.http.get(f"/jobs/{job_id}/explain")
    assert answer.status_code == 200, answer.text
    return Explanation(**answer.json())


async def test_a_synchronous_call_is_explained_with_all_that_its_steps_did():
    tries = itertools.count(1)

    @step(cache=Cache(ttl=30))
    def embed(text: str, size: int = 2) -> list[int]:
        return [len(text)] * size

    @step(retry=Retry(attempts=3, backoff=0))
    def rank(values: list[int]) -> int:
        if next(tries) < 3:
            raise ConnectionError("not yet")
        return max(values)

    @step(batch=Batch(max_size=4, max_wait_ms=1))
    def square(values: list[int]) -> list[int]:
        return [value * value for value in values]

    @pipeline
    def search(text: str) -> int:
        return square(rank(embed(text)))

    async with serving(search) as service:
        first = (await service.invoke({"text": "planted-marker"})).json()["job_id"]
        found = await explanation(service, first)
        assert found.status is JobStatus.COMPLETED
        assert [step.name for step in found.steps] == ["embed", "rank", "square"]
        assert "embed: cache miss, because this process had no earlier call of the step." in found.summary
        assert "rank: called 3 times, two calls failed." in found.summary
        assert found.steps[2].batch == 1

        again = (await service.invoke({"text": "another"})).json()["job_id"]
        found = await explanation(service, again)
        assert "embed: cache miss, because argument text differs from the nearest earlier call." in found.summary

        third = (await service.invoke({"text": "another"})).json()["job_id"]
        answer = await service.http.get(f"/jobs/{third}/explain")
        assert answer.json()["cache"]["hits"] == 1
        assert "planted-marker" not in answer.text
        assert "another" not in answer.text


async def test_a_secret_argument_is_named_and_its_value_never_shown():
    @step(cache=True)
    def login(token: Secret[str]) -> int:
        return len(token)

    @pipeline
    def session(token: Secret[str]) -> int:
        return login(token)

    async with serving(session) as service:
        await service.invoke({"token": "hunter2-first"})
        job_id = (await service.invoke({"token": "hunter2-second"})).json()["job_id"]
        answer = await service.http.get(f"/jobs/{job_id}/explain")
        assert "argument token differs" in answer.text
        assert "hunter2" not in answer.text


async def test_a_job_is_explained_in_every_state():
    held, gate = gated()
    async with serving(held) as service:
        job_id = await service.submit({"text": "a"})
        assert (await explanation(service, job_id)).summary[0].endswith("and it is the next.")
        async with working(service):
            await wait_until(gate.entered.is_set, "it runs")

            async def running() -> bool:
                return "Now running: hold." in (await explanation(service, job_id)).summary

            await wait_until(running, "its record shows the step")
            gate.opened.set()
            await service.http.get(f"/jobs/{job_id}?wait=10")
            found = await explanation(service, job_id)
            assert found.status is JobStatus.COMPLETED
            assert found.timing.running is not None
            assert found.summary[0].startswith("It waited ")


async def test_a_synchronous_call_is_explained_while_it_runs():
    async with serving(rest) as service:
        accepted = await service.invoke({"seconds": 30}, headers={"Prefer": "wait=0.01"})
        job_id = accepted.json()["job_id"]
        found = await explanation(service, job_id)
        assert found.summary[0].startswith("It has run for ")
        assert "Now running: pause." in found.summary
        await service.http.post(f"/jobs/{job_id}/cancel?reason=enough")
        await service.http.get(f"/jobs/{job_id}?wait=10")
        found = await explanation(service, job_id)
        assert "It was canceled by caller: enough." in found.summary
        assert found.steps[0].words == "canceled"


async def test_an_attempt_that_was_lost_is_told_from_the_log():
    held, _ = gated()
    async with serving(held) as service:
        job_id = await service.submit({"text": "a"})
        await service.store.ledger.claim("a-worker-that-dies", 1)
        await service.store.ledger.release("a-worker-that-dies", lost=True)
        found = await explanation(service, job_id)
        assert found.summary[0].endswith("It was started before: an earlier attempt was lost.")
        await service.store.ledger.claim("a-worker-that-stops", 1)
        await service.store.ledger.release("a-worker-that-stops", lost=False)
        found = await explanation(service, job_id)
        assert (found.attempts.earlier, found.attempts.lost, found.attempts.handed_back) == (2, 1, 1)


async def test_a_job_that_waits_says_why_over_http():
    held, _ = gated()
    async with serving(held) as service:
        terms = {"labels": {"tenant": "acme"}, "priority": 5, "expires_in": 3600}
        first = await service.submit({"text": "a"}, **terms)
        later = await service.submit({"text": "b"}, run_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
        found = await explanation(service, first)
        assert found.waiting is not None
        assert (found.waiting.tenant, found.waiting.priority) == ("acme", 5)
        assert found.waiting.expires_at is not None
        assert any(sentence.startswith("It expires if it has not begun in ") for sentence in found.summary)
        found = await explanation(service, later)
        assert found.summary[0].startswith("It is not to start for another ")


async def test_a_write_that_came_too_late_is_told_and_counted():
    held, _ = gated()
    async with serving(held) as service:
        job_id = await service.submit({"text": "a"})
        [claim] = await service.store.ledger.claim("a-worker-that-sleeps", 1)
        await service.store.ledger.release("a-worker-that-sleeps", lost=True)
        with pytest.raises(StaleAttemptError):
            await service.store.ledger.append(job_id, claim.attempt, [], RunView())
        found = await explanation(service, job_id)
        assert found.attempts.fenced_writes == 1
        assert "1 late write of an attempt that had lost the job was refused." in found.summary
        assert (await service.http.get("/metrics")).json()["fenced_writes"] == 1
        text = (await service.http.get("/metrics?format=prometheus")).text
        assert 'pipeserve_fenced_writes_total{pipeline="held"} 1.0' in text


async def test_without_metadata_the_route_says_what_there_is():
    async with serving(quiet) as service:
        job_id = (await service.invoke({"text": "a"})).json()["job_id"]
        found = await explanation(service, job_id)
        assert found.steps == []
        assert "Nothing was kept of its steps: the pipeline has Capture(metadata=False)." in found.summary


async def test_a_memory_only_job_says_that_nothing_was_kept():
    async with serving(secretive) as service, working(service):
        job_id = await service.submit({"text": "a"})
        await service.http.get(f"/jobs/{job_id}?wait=10")
        found = await explanation(service, job_id)
        assert "Nothing was kept of its steps: the pipeline has Capture(memory_only=True)." in found.summary


async def test_an_unknown_job_is_404():
    async with serving(quiet) as service:
        for job_id in ("01890000-0000-7000-8000-000000000000", "nonsense"):
            answer = await service.http.get(f"/jobs/{job_id}/explain")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
