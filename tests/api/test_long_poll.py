"""``GET /jobs/{id}/events``: a job's log by long polls, filtered and from any position."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from tests.api.harness import Served, serving, wait_until
from tests.api.pipelines import shout

from pipeserve.events import Event, EventType, encode_body
from pipeserve.jobs import TERMINAL_EVENT_OF, Job, JobStatus
from pipeserve.runtime.memory import MemoryStore
from pipeserve.runtime.ports import Outcome, RunView
from pipeserve_api.services import Backend


@dataclass(frozen=True)
class LiveJob:
    """A job that the test itself works on, event by event."""

    served: Served
    job_id: str

    async def tell(self, *types: EventType) -> None:
        """Add events to its log."""
        bodies = [encode_body(Event(kind, self.job_id, 1, data={"value": None})) for kind in types]
        await self.served.store.ledger.append(self.job_id, 1, bodies, RunView())

    async def end(self) -> None:
        """Complete it."""
        terminal = encode_body(Event(TERMINAL_EVENT_OF[JobStatus.COMPLETED], self.job_id, 1))
        outcome = Outcome(status=JobStatus.COMPLETED, terminal_event=terminal, execution_time=0.0, outputs=b"{}")
        await self.served.store.ledger.finish(self.job_id, 1, (), RunView(), outcome)

    async def poll(self, **query: Any) -> dict[str, Any]:
        """One page."""
        async with asyncio.timeout(8):
            answer = await self.served.http.get(f"/jobs/{self.job_id}/events", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def polling(self, **query: Any) -> asyncio.Task[dict[str, Any]]:
        """A poll that waits by now."""
        task = asyncio.create_task(self.poll(wait=30, **query))
        await wait_until(lambda: self._followed or task.done(), "the log is followed")
        return task

    @property
    def _followed(self) -> bool:
        log = self.served.store.log
        return bool(log._followers if isinstance(self.served.store, MemoryStore) else log._hub._channels)


@pytest.fixture
async def job(backend: Backend) -> AsyncIterator[LiveJob]:
    """A running job with one event in its log: ``job_queued``."""
    async with serving(shout, backend=backend) as served:
        yield await claimed(served)


async def claimed(served: Served) -> LiveJob:
    job_id = await served.submit({"text": "a"})
    [claim] = await served.store.ledger.claim("test-worker", 1)
    assert claim.job_id == job_id
    return LiveJob(served, job_id)


def told(page: dict[str, Any]) -> list[tuple[int, str]]:
    return [(event["seq"], event["event_type"]) for event in page["events"]]


async def test_a_poll_without_a_filter_brings_everything_that_came_at_once(job: LiveJob):
    polling = await job.polling(after=1)
    await job.tell(EventType.PIPELINE_STARTED, EventType.STEP_STARTED)
    page = await polling
    assert told(page) == [(2, "pipeline_started"), (3, "step_started")]
    assert (page["next"], page["done"]) == (3, False)


@pytest.mark.parametrize("types", ["output,step_started", ["output", "step_started"]])
async def test_a_filter_brings_only_events_of_its_types(job: LiveJob, types: str | list[str]):
    await job.tell(EventType.STEP_STARTED, EventType.LOG, EventType.OUTPUT, EventType.LOG)
    page = await job.poll(types=types)
    assert told(page) == [(2, "step_started"), (4, "output")]


async def test_next_moves_over_what_a_filter_left_out(job: LiveJob):
    await job.tell(EventType.LOG, EventType.OUTPUT, EventType.LOG, EventType.LOG)
    page = await job.poll(types="output")
    assert (told(page), page["next"]) == ([(3, "output")], 5)
    page = await job.poll(types="output", after=3)
    assert page == {"events": [], "next": 5, "done": False}


async def test_a_poll_goes_on_waiting_while_only_filtered_events_come(job: LiveJob):
    polling = await job.polling(types="output")
    for _ in range(3):
        await job.tell(EventType.LOG)
    await job.poll(after=3)  # everybody who follows has been told by now, or is about to be
    assert not polling.done()
    await job.tell(EventType.OUTPUT)
    page = await polling
    assert (told(page), page["next"], page["done"]) == ([(5, "output")], 5, False)


async def test_the_end_of_the_job_is_told_though_the_filter_leaves_it_out(job: LiveJob):
    polling = await job.polling(types="output")
    await job.tell(EventType.LOG)
    await job.end()
    assert await polling == {"events": [], "next": 3, "done": True}


async def test_a_filter_reads_on_until_it_finds_something(job: LiveJob):
    for _ in range(3):
        await job.tell(*[EventType.LOG] * 500)
    await job.tell(EventType.OUTPUT)
    assert told(await job.poll(types="output")) == [(1502, "output")]


async def test_a_log_of_which_nothing_passes_the_filter_ends(job: LiveJob):
    await job.tell(*[EventType.LOG] * 1200)
    await job.end()
    assert await job.poll(types="output") == {"events": [], "next": 1202, "done": True}


async def test_an_unknown_type_is_422_and_says_which_there_are(job: LiveJob):
    answer = await job.served.http.get(f"/jobs/{job.job_id}/events", params={"types": "output,smoke"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")
    assert "smoke" in answer.json()["detail"]
    assert "step_started" in answer.json()["detail"]


async def test_a_position_beyond_the_end_of_an_ended_jobs_log_is_done(job: LiveJob):
    await job.end()
    assert await job.poll(after=500, wait=30) == {"events": [], "next": 500, "done": True}


async def test_a_position_beyond_the_end_of_a_live_jobs_log_waits_for_its_end(job: LiveJob):
    assert await job.poll(after=500) == {"events": [], "next": 500, "done": False}
    polling = await job.polling(after=500)
    await job.tell(EventType.OUTPUT)
    await job.end()
    assert await polling == {"events": [], "next": 500, "done": True}


async def test_a_wait_that_nothing_ends_is_answered_with_the_same_position(job: LiveJob):
    assert await job.poll(after=1, wait=0.05) == {"events": [], "next": 1, "done": False}


async def test_a_drain_ends_a_wait_at_once_with_what_there_is(job: LiveJob):
    await job.tell(EventType.LOG)
    polling = await job.polling(types="output")
    job.served.drain.begin()
    assert await polling == {"events": [], "next": 2, "done": False}
    assert (await job.poll(types="output", after=2, wait=30))["done"] is False  # nor does a new one wait


async def test_many_polls_read_the_whole_log_once(job: LiveJob):
    async def work() -> None:
        for _ in range(20):
            await job.tell(EventType.LOG, EventType.OUTPUT)
        await job.end()

    working = asyncio.create_task(work())
    events: list[tuple[int, str]] = []
    page: dict[str, Any] = {"next": 0, "done": False}
    while not page["done"]:
        page = await job.poll(after=page["next"], wait=5)
        events += told(page)
    await working
    assert [seq for seq, _ in events] == list(range(1, 43))


class EndsMeanwhile:
    """A ledger whose job ends between the first look at it and the second."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger
        self.job: LiveJob | None = None
        self._looks = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def get(self, job_id: str) -> Job | None:
        self._looks += 1
        if self.job is not None and self._looks == 2:
            await self.job.end()
        return await self._ledger.get(job_id)


class StoreWith:
    """A store with another ledger."""

    def __init__(self, store: MemoryStore, ledger: Any) -> None:
        self._store = store
        self.ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize(("types", "events"), [((), ["pipeline_completed"]), (("output",), [])])
async def test_a_job_that_ends_just_after_the_wait_is_not_said_to_be_done_before_its_end_is_told(
    types: Sequence[str], events: list[str]
):
    store = MemoryStore(lease_seconds=60)
    ledger = EndsMeanwhile(store.ledger)
    backend: Any = StoreWith(store, ledger)
    async with serving(shout, backend=backend) as served:
        ledger.job = await claimed(served)
        page = await ledger.job.poll(after=1, wait=0.01, types=list(types))
    assert ([kind for _, kind in told(page)], page["next"], page["done"]) == (events, 2, True)
