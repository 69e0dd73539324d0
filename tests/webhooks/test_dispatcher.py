"""Sending what is due: over both stores, to a real receiver."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.contracts.stores import NO_VIEW, body, new_job, outcome
from tests.store_fixtures import wait_until
from tests.webhooks.receiver import SECRET, Receiver, answer, receiving

from pipeserve.errors import StoreUnavailableError
from pipeserve.events import number
from pipeserve.jobs import Job, JobStatus, WebhookReport
from pipeserve.runtime.memory import MemoryEventLog, MemoryStore
from pipeserve.runtime.ports import (
    DueWebhook,
    EventLog,
    JobLedger,
    LogEntry,
    LogGap,
    Webhook,
    WebhookOutbox,
    WebhookProgress,
)
from pipeserve.settings import StoreSettings, WebhookSettings
from pipeserve.store import open_store
from pipeserve.webhooks import DEFAULT_EVENTS, EVENT_TYPES, Signer, verify
from pipeserve.webhooks.dispatcher import WebhookDispatcher
from pipeserve.webhooks.pauses import PAUSES

OWNER = "test:1:abc"
NEVER = 3600.0


@dataclass
class Backend:
    """The ports that webhooks need."""

    ledger: JobLedger
    log: EventLog
    webhooks: WebhookOutbox

    async def submit(self, url: str, events: Sequence[str] = DEFAULT_EVENTS) -> str:
        """The id of a job that waits."""
        job = new_job(webhook=Webhook(url, tuple(events)))
        await self.ledger.submit(job)
        return job.job_id

    async def run(self, job_id: str, *texts: str, status: JobStatus = JobStatus.COMPLETED) -> None:
        """Claim a job that waits alone, let it tell ``texts``, and end it."""
        await self.claim()
        await self.ledger.append(job_id, 1, [body(job_id, message=text) for text in texts], NO_VIEW)
        await self.ledger.finish(job_id, 1, [], NO_VIEW, outcome(job_id, status=status))

    async def claim(self) -> None:
        await self.ledger.claim(OWNER, 1)

    async def report(self, job_id: str) -> WebhookReport:
        job = await self.ledger.get(job_id)
        assert isinstance(job, Job)
        assert job.webhook is not None
        return job.webhook

    async def settled(self, job_id: str, status: str) -> WebhookReport:
        """The job's report, once its webhook has come to ``status``."""

        async def there() -> bool:
            return (await self.report(job_id)).status == status

        await wait_until(there, description=f"the webhook is {status}")
        return await self.report(job_id)


@pytest.fixture(params=["memory", "valkey"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """A fresh deployment."""
    if request.param == "memory":
        store = MemoryStore()
        yield Backend(store.ledger, store.log, store.webhooks)
        return
    settings = StoreSettings.from_environment(redis_url=request.getfixturevalue("store_url"))
    async with open_store(settings) as opened, opened.deployment("00000000-0000-4000-8000-000000000001") as deployment:
        yield Backend(deployment.ledger, deployment.log, deployment.webhooks)


@dataclass
class Pauses:
    """Pauses of ``seconds``; remembers what was asked."""

    seconds: float = 0.0
    asked: list[tuple[int, float | None]] = field(default_factory=list)

    def __call__(self, failures: int, retry_after: float | None) -> float:
        self.asked.append((failures, retry_after))
        return self.seconds


def settings(**changes: Any) -> WebhookSettings:
    return WebhookSettings.from_environment(**{"secret": SECRET, "allow": "127.0.0.1", **changes})


@asynccontextmanager
async def dispatching(
    backend: Backend, *, outbox: WebhookOutbox | None = None, pauses: Pauses | None = None, **options: Any
) -> AsyncIterator[WebhookDispatcher]:
    """A dispatcher that runs; ``options``: settings by field name, and its own."""
    own = {name: options.pop(name) for name in ("concurrency", "stop_seconds") if name in options}
    dispatcher = WebhookDispatcher(
        backend.webhooks if outbox is None else outbox,
        backend.ledger,
        backend.log,
        Signer.from_secrets(SECRET),
        settings(**options),
        pauses=Pauses() if pauses is None else pauses,
        **own,
    )
    async with dispatcher:
        yield dispatcher


# ---- what is sent


async def test_the_end_of_a_job_is_sent_signed_and_is_the_event_of_every_transport(backend: Backend) -> None:
    async with receiving() as receiver, dispatching(backend):
        job_id = await backend.submit(receiver.url)
        await backend.run(job_id, "one", "two")
        report = await backend.settled(job_id, "done")
    (request,) = receiver.requests
    entry = (await backend.log.read(job_id))[-1]
    assert isinstance(entry, LogEntry)
    assert request.id == f"{job_id}:{entry.seq}"
    assert request.body.endswith(b'"data":' + number(entry.seq, entry.body) + b"}")
    message = verify(request.headers, request.body, SECRET)
    assert message["type"] == message["data"]["event_type"] == "pipeline_completed"
    assert message["timestamp"] == message["data"]["timestamp"]
    (delivery,) = report.deliveries
    assert (delivery.seq, delivery.event_type, delivery.attempt) == (entry.seq, "pipeline_completed", 1)
    assert (delivery.status_code, delivery.error) == (204, None)


async def test_all_events_are_sent_in_order_while_the_job_runs(backend: Backend) -> None:
    async with receiving() as receiver, dispatching(backend):
        job_id = await backend.submit(receiver.url, EVENT_TYPES)
        await wait_until(lambda: receiver.requests, description="the job's first event has come before it runs")
        await backend.claim()
        for n in range(150):
            await backend.ledger.append(job_id, 1, [body(job_id, message=str(n))], NO_VIEW)
        await wait_until(lambda: len(receiver.requests) > 100, description="events come while the job runs")
        await backend.ledger.finish(job_id, 1, [], NO_VIEW, outcome(job_id))
        await backend.settled(job_id, "done")
    entries = await backend.log.read(job_id)
    assert [request.seq for request in receiver.requests] == [
        entry.seq for entry in entries if isinstance(entry, LogEntry)
    ]


async def test_only_the_wanted_events_are_sent(backend: Backend) -> None:
    async with receiving() as receiver, dispatching(backend):
        job_id = await backend.submit(receiver.url, ("job_queued", "pipeline_failed"))
        await backend.run(job_id, *map(str, range(250)), status=JobStatus.FAILED)
        await backend.settled(job_id, "done")
    assert [request.message["type"] for request in receiver.requests] == ["job_queued", "pipeline_failed"]


async def test_an_end_that_is_not_wanted_is_not_sent_and_ends_the_webhook(backend: Backend) -> None:
    async with receiving() as receiver, dispatching(backend):
        job_id = await backend.submit(receiver.url, ("pipeline_failed",))
        await backend.run(job_id)
        await backend.settled(job_id, "done")
    assert receiver.requests == []


async def test_a_job_that_is_canceled_before_it_runs_is_told_of(backend: Backend) -> None:
    async with receiving() as receiver, dispatching(backend):
        job_id = await backend.submit(receiver.url)
        await backend.ledger.cancel(job_id)
        await backend.settled(job_id, "done")
    assert [request.message["type"] for request in receiver.requests] == ["pipeline_canceled"]


async def test_events_that_the_log_has_lost_are_passed_over() -> None:
    store = MemoryStore(event_log_max=20)
    backend = Backend(store.ledger, store.log, store.webhooks)
    async with receiving() as receiver:
        job_id = await backend.submit(receiver.url, EVENT_TYPES)
        await backend.run(job_id, *map(str, range(100)))
        async with dispatching(backend):
            await backend.settled(job_id, "done")
    kept = [entry.seq for entry in await store.log.read(job_id) if isinstance(entry, LogEntry)]
    assert kept[0] > 1
    assert [request.seq for request in receiver.requests] == kept


# ---- tries that fail


async def test_a_failed_event_is_tried_again_under_the_same_id_before_the_next_one(backend: Backend) -> None:
    pauses = Pauses()
    async with receiving() as receiver, dispatching(backend, pauses=pauses):
        receiver.answers = [answer(204), answer(500), answer(404), answer(204)]
        job_id = await backend.submit(receiver.url, ("job_queued", "log", "pipeline_completed"))
        await backend.run(job_id, "one")
        report = await backend.settled(job_id, "done")
    first, log, *_, end = receiver.requests
    assert [request.id for request in receiver.requests] == [first.id, log.id, log.id, log.id, end.id]
    assert {request.body for request in receiver.requests[1:4]} == {log.body}
    assert pauses.asked == [(1, None), (2, None)]
    assert [(d.attempt, d.status_code) for d in report.deliveries] == [(1, 204), (1, 500), (2, 404), (3, 204), (1, 204)]


async def test_a_webhook_whose_tries_are_used_up_has_failed(backend: Backend) -> None:
    async with receiving(Receiver(usual=answer(500))) as receiver, dispatching(backend, attempts=3):
        job_id = await backend.submit(receiver.url, EVENT_TYPES)
        report = await backend.settled(job_id, "failed")
        await backend.run(job_id, "one")
        other = await backend.submit(receiver.url, EVENT_TYPES)
        await backend.settled(other, "failed")
        assert len(receiver.requests) == 6, "nothing more is sent for the first job"
    assert [delivery.attempt for delivery in report.deliveries] == [1, 2, 3]
    assert report.deliveries[-1].error == "the receiver answered 500"


async def test_a_receiver_that_is_gone_ends_the_webhook_at_once(backend: Backend) -> None:
    pauses = Pauses()
    async with receiving(Receiver(usual=answer(410))) as receiver, dispatching(backend, pauses=pauses):
        job_id = await backend.submit(receiver.url, EVENT_TYPES)
        report = await backend.settled(job_id, "disabled")
        await backend.run(job_id)
    assert len(report.deliveries) == len(receiver.requests) == 1
    assert pauses.asked == []


@pytest.mark.parametrize(("status", "asked"), [(429, 7.0), (503, 7.0), (500, None), (302, None)])
async def test_a_busy_receiver_is_asked_when_to_come_again(status: int, asked: float | None) -> None:
    store = MemoryStore()
    backend = Backend(store.ledger, store.log, store.webhooks)
    pauses = Pauses()
    async with receiving() as receiver, dispatching(backend, pauses=pauses):
        receiver.answers = [answer(status, "Retry-After: 7")]
        job_id = await backend.submit(receiver.url)
        await backend.run(job_id)
        await backend.settled(job_id, "done")
    assert pauses.asked == [(1, asked)]


async def test_a_receiver_that_comes_back_gets_what_it_has_missed(backend: Backend) -> None:
    async with receiving() as receiver:
        pass
    async with dispatching(backend, pauses=Pauses(0.02), attempts=10_000):
        job_id = await backend.submit(receiver.url, EVENT_TYPES)
        await backend.run(job_id, "one", "two")

        async def tried() -> bool:
            return len((await backend.report(job_id)).deliveries) > 2

        await wait_until(tried, description="the receiver was missed several times")
        async with receiving(receiver):
            await backend.settled(job_id, "done")
    seqs = [request.seq for request in receiver.requests]
    assert seqs == list(range(1, len(seqs) + 1))
    assert receiver.requests[-1].message["type"] == "pipeline_completed"


async def test_a_private_receiver_is_not_sent_to(backend: Backend) -> None:
    async with receiving() as receiver, dispatching(backend, allow="", attempts=1):
        job_id = await backend.submit(receiver.url)
        await backend.run(job_id)
        report = await backend.settled(job_id, "failed")
    assert "private address" in str(report.deliveries[0].error)
    assert receiver.connections == 0


async def test_one_receiver_that_fails_does_not_hold_up_another(backend: Backend) -> None:
    async with (
        receiving(Receiver(usual=answer(500))) as broken,
        receiving() as well,
        dispatching(backend, pauses=Pauses(NEVER)),
    ):
        first = await backend.submit(broken.url)
        await backend.run(first)
        await wait_until(lambda: broken.requests, description="the broken receiver was tried")
        second = await backend.submit(well.url)
        await backend.run(second)
        await backend.settled(second, "done")
    assert (await backend.report(first)).status == "active"


async def test_a_receiver_that_gives_no_answer_leaves_room_for_others(backend: Backend) -> None:
    async def hang_up(writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(NEVER)

    options = {"concurrency": 4, "timeout": NEVER, "stop_seconds": 0.01, "pauses": Pauses(NEVER)}
    async with (
        receiving(Receiver(answers=[hang_up], usual=silent)) as hanging,
        receiving() as well,
        dispatching(backend, **options),
    ):
        first = await backend.submit(hanging.url, EVENT_TYPES)

        async def noted() -> bool:
            return bool((await backend.report(first)).deliveries)

        await wait_until(noted, description="it has given no answer")
        for _ in range(10):
            await backend.submit(hanging.url, EVENT_TYPES)
        await wait_until(lambda: len(hanging.requests) == 2, description="one place is lost to it")
        await backend.submit(well.url, EVENT_TYPES)
        await wait_until(lambda: well.requests, description="the other receiver is sent to")
        assert len(hanging.requests) == 2


async def test_a_receiver_that_is_slow_from_the_first_try_on_leaves_room_for_others(backend: Backend) -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(NEVER)

    async with receiving(Receiver(usual=silent)) as slow, receiving() as well:
        for _ in range(10):
            await backend.submit(slow.url, EVENT_TYPES)
        async with dispatching(backend, concurrency=4, timeout=NEVER, stop_seconds=0.01):
            await backend.submit(well.url, EVENT_TYPES)
            await wait_until(lambda: well.requests, description="the other receiver is sent to")
    assert len(slow.requests) == 1


# ---- more than one sender, and senders that end


async def test_two_dispatchers_send_each_event_once(backend: Backend) -> None:
    async with receiving() as receiver, dispatching(backend), dispatching(backend):
        jobs = [await backend.submit(receiver.url, EVENT_TYPES) for _ in range(20)]
        for job_id in jobs:
            await backend.run(job_id, "one", "two")
        for job_id in jobs:
            await backend.settled(job_id, "done")
    ids = [request.id for request in receiver.requests]
    assert len(ids) == len(set(ids))
    for job_id in jobs:
        seqs = [request.seq for request in receiver.requests if request.id.startswith(job_id)]
        assert seqs == [entry.seq for entry in await backend.log.read(job_id) if isinstance(entry, LogEntry)]


class Outbox:
    """A store's outbox, where a test can break it."""

    def __init__(self, inner: WebhookOutbox, *, due_fails: int = 0, settle_fails: int = 0) -> None:
        self._inner = inner
        self.due_fails = due_fails
        self.settle_fails = settle_fails

    async def due(self, limit: int, *, hold: float) -> tuple[list[DueWebhook], float | None]:
        if self.due_fails > 0:
            self.due_fails -= 1
            raise StoreUnavailableError("away")
        return await self._inner.due(limit, hold=hold)

    async def settle(self, job_id: str, progress: WebhookProgress) -> None:
        if self.settle_fails > 0:
            self.settle_fails -= 1
            raise StoreUnavailableError("away")
        await self._inner.settle(job_id, progress)

    def news(self) -> Any:
        return self._inner.news()


async def test_a_store_that_is_away_for_a_while_loses_nothing_and_doubles_nothing(backend: Backend) -> None:
    outbox = Outbox(backend.webhooks, due_fails=3, settle_fails=3)
    async with receiving() as receiver, dispatching(backend, outbox=outbox):
        job_id = await backend.submit(receiver.url)
        await backend.run(job_id)
        await backend.settled(job_id, "done")
    assert (outbox.due_fails, outbox.settle_fails) == (0, 0)
    assert len(receiver.requests) == 1


async def test_a_fault_in_one_look_does_not_end_the_sending(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Outbox):
        async def due(self, limit: int, *, hold: float) -> tuple[list[DueWebhook], float | None]:
            if self.due_fails > 0:
                self.due_fails -= 1
                raise ValueError("a fault")
            return await super().due(limit, hold=hold)

    async with receiving() as receiver, dispatching(backend, outbox=Faulty(backend.webhooks, due_fails=2)):
        job_id = await backend.submit(receiver.url)
        await backend.run(job_id)
        await backend.settled(job_id, "done")
    assert "the outbox of webhooks can't be read" in caplog.text


async def test_a_record_that_can_not_be_read_holds_up_no_other(store_url: str) -> None:
    config = StoreSettings.from_environment(redis_url=store_url)
    async with open_store(config) as opened, opened.deployment("00000000-0000-4000-8000-000000000001") as deployment:
        backend = Backend(deployment.ledger, deployment.log, deployment.webhooks)
        async with receiving() as receiver:
            broken = await backend.submit(receiver.url, EVENT_TYPES)
            await deployment.redis.execute_command("HSET", deployment.keys.job(broken), "webhook", b"{")
            await backend.submit(receiver.url, EVENT_TYPES)
            async with dispatching(backend):
                await wait_until(lambda: receiver.requests, description="the other job's event has come")
    assert not any(request.id.startswith(broken) for request in receiver.requests)


async def test_many_jobs_that_are_gone_do_not_stand_before_one_that_is_there(store_url: str) -> None:
    config = StoreSettings.from_environment(redis_url=store_url)
    async with open_store(config) as opened, opened.deployment("00000000-0000-4000-8000-000000000001") as deployment:
        backend = Backend(deployment.ledger, deployment.log, deployment.webhooks)
        job_id = await backend.submit("http://127.0.0.1:9/", EVENT_TYPES)
        gone = [part for n in range(50) for part in ("1", f"gone-{n}")]
        await deployment.redis.execute_command("ZADD", deployment.keys.prefix + "webhooks", *gone)
        due, _ = await backend.webhooks.due(1, hold=NEVER)
    assert [webhook.job_id for webhook in due] == [job_id]


async def test_a_pause_outlives_the_time_for_which_results_are_kept(store_url: str) -> None:
    config = StoreSettings.from_environment(redis_url=store_url, result_ttl=1)
    async with open_store(config) as opened, opened.deployment("00000000-0000-4000-8000-000000000001") as deployment:
        backend = Backend(deployment.ledger, deployment.log, deployment.webhooks)
        job_id = await backend.submit("http://127.0.0.1:9/", EVENT_TYPES)
        await backend.webhooks.due(1, hold=NEVER)
        longest = PAUSES[-1] * 1.2
        await backend.webhooks.settle(job_id, WebhookProgress(after=0, retry_in=longest, attempt=7))
        kept = await deployment.redis.execute_command("PTTL", deployment.keys.prefix + "webhooks")
    assert isinstance(kept, int)
    assert kept > longest * 1000


async def test_what_was_sent_but_not_noted_is_sent_again_under_the_same_id() -> None:
    ahead = 0.0
    store = MemoryStore(clock=lambda: time.time() + ahead)
    backend = Backend(store.ledger, store.log, store.webhooks)
    async with receiving() as receiver:
        job_id = await backend.submit(receiver.url)
        await backend.run(job_id)
        # A process that dies between the answer and its note, as far as the store and the receiver can tell.
        dying = Outbox(backend.webhooks, settle_fails=1_000_000)
        async with dispatching(backend, outbox=dying, stop_seconds=0.0):
            await wait_until(lambda: receiver.requests, description="the first process has sent")
        async with dispatching(backend):
            assert (await backend.webhooks.due(1, hold=1.0))[0] == [], "the first process's hold has not run out"
            ahead = 60.0
            await backend.settled(job_id, "done")
    assert [request.id for request in receiver.requests] == [f"{job_id}:{receiver.requests[0].seq}"] * 2


async def test_a_request_under_way_is_finished_and_noted_when_the_process_stops(backend: Backend) -> None:
    arrived, let_go = asyncio.Event(), asyncio.Event()

    async def slow(writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await let_go.wait()
        writer.write(answer(204))

    async with receiving(Receiver(usual=slow)) as receiver:
        job_id = await backend.submit(receiver.url, EVENT_TYPES)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(dispatching(backend))
            async with asyncio.timeout(10):
                await arrived.wait()
            await backend.claim()
            await backend.ledger.append(job_id, 1, [body(job_id)], NO_VIEW)
            closing = asyncio.create_task(stack.pop_all().aclose())
            await asyncio.sleep(0)
            let_go.set()
            await closing
        assert len((await backend.report(job_id)).deliveries) == len(receiver.requests) == 1
        # What is left is due at once for another process.
        (left,), _ = await backend.webhooks.due(10, hold=NEVER)
        assert (left.job_id, left.after) == (job_id, 1)


async def test_a_request_that_takes_too_long_is_left_to_another_process(backend: Backend) -> None:
    arrived = asyncio.Event()

    async def silent(writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await asyncio.sleep(NEVER)

    async with receiving(Receiver(usual=silent)) as receiver:
        job_id = await backend.submit(receiver.url, EVENT_TYPES)
        async with dispatching(backend, stop_seconds=0.01):
            async with asyncio.timeout(10):
                await arrived.wait()
        due, next_in = await backend.webhooks.due(10, hold=NEVER)
    assert due == []
    assert next_in is not None, "it is held, not forgotten"
    assert (await backend.report(job_id)).deliveries == []


async def test_a_job_that_is_gone_is_forgotten() -> None:
    store = MemoryStore()
    settled: list[tuple[str, str]] = []

    class Stale(Outbox):
        """As if a job went between the look and the reading of its log."""

        async def due(self, limit: int, *, hold: float) -> tuple[list[DueWebhook], float | None]:
            return ([] if settled else [DueWebhook("gone", Webhook("http://127.0.0.1:9/", DEFAULT_EVENTS), 3, 0)]), None

        async def settle(self, job_id: str, progress: WebhookProgress) -> None:
            settled.append((job_id, progress.status))

    backend = Backend(store.ledger, store.log, store.webhooks)
    async with dispatching(backend, outbox=Stale(store.webhooks)):
        await wait_until(lambda: settled, description="the job is settled")
    assert settled == [("gone", "done")]


@pytest.mark.parametrize(("ended", "status"), [(False, "active"), (True, "done")])
async def test_a_log_that_is_gone_is_not_looked_for_again(ended: bool, status: str) -> None:
    settled: list[WebhookProgress] = []

    class Noting(Outbox):
        async def settle(self, job_id: str, progress: WebhookProgress) -> None:
            settled.append(progress)
            await super().settle(job_id, progress)

    class Emptied(MemoryEventLog):
        async def read(self, job_id: str, *, after: int = 0, limit: int = 1000) -> list[LogEntry | LogGap]:
            return []

    store = MemoryStore()
    backend = Backend(store.ledger, Emptied(store.log._state), store.webhooks)
    job_id = await backend.submit("http://127.0.0.1:9/", EVENT_TYPES)
    if ended:
        await backend.run(job_id)
    async with dispatching(backend, outbox=Noting(store.webhooks)):
        await wait_until(lambda: settled, description="the job is settled")
    job = await store.ledger.get(job_id)
    assert job is not None
    assert [(progress.after, progress.status) for progress in settled] == [(job.last_seq, status)]
