"""``GET /events``: several jobs in one stream of Server-Sent Events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.api.harness import Served, frames, serving, wait_until
from tests.api.pipelines import gated, shout
from tests.api.worker import working

from pipeserve.events import Event, EventType, encode_body
from pipeserve.runtime.follower import Follower, WokenFollower
from pipeserve.runtime.ports import EventLog, LogEntry, LogGap, RunView
from pipeserve_api.lookup import JobLog, StoredLog
from pipeserve_api.merged_log import MergedFrames
from pipeserve_api.positions import Positions
from pipeserve_api.services import Backend


@pytest.fixture
async def served(backend: Backend):
    async with serving(shout, backend=backend) as service:
        yield service


async def submitted(served: Served, count: int = 3) -> list[str]:
    return [await served.submit({"text": str(at)}) for at in range(count)]


async def finished(served: Served, count: int = 3) -> list[str]:
    """Jobs that have completed."""
    job_ids = await submitted(served, count)
    async with working(served):
        for job_id in job_ids:
            await served.http.get(f"/jobs/{job_id}", params={"wait": 5})
    return job_ids


async def read(served: Served, job_ids: list[str], **query: Any) -> list[dict[str, str]]:
    """The blocks of the whole stream."""
    answer = await served.http.get("/events", params={"job": job_ids, **query})
    assert answer.status_code == 200, answer.text
    return frames(answer.text)


def told(blocks: list[dict[str, str]]) -> dict[str, list[int]]:
    """The numbers of the events, by job."""
    found: dict[str, list[int]] = {}
    for block in blocks:
        if "data" in block and "id" in block:
            event = json.loads(block["data"])
            found.setdefault(event["job_id"], []).append(event["seq"])
    return found


async def test_each_job_is_shown_first_and_then_told_whole(served: Served):
    job_ids = await submitted(served)
    async with served.http.stream("GET", "/events", params={"job": job_ids}) as answer, working(served):
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["x-accel-buffering"] == "no"
        text = "".join([chunk async for chunk in answer.aiter_text()])
    assert text.startswith("retry: 2000\n")
    blocks = frames(text)
    assert [json.loads(block["data"])["job_id"] for block in blocks[:3]] == job_ids
    assert [(block["event"], "id" in block) for block in blocks[:3]] == [("snapshot", False)] * 3
    numbers = told(blocks)
    assert set(numbers) == set(job_ids)
    for seqs in numbers.values():
        assert seqs == list(range(1, len(seqs) + 1))
    ends = [block for block in blocks if block["event"] == "pipeline_completed"]
    assert len(ends) == 3


async def test_a_position_is_the_number_of_each_job_in_the_order_of_the_request(served: Served):
    job_ids = await finished(served)
    seen = dict.fromkeys(job_ids, 0)
    for block in (await read(served, job_ids))[3:]:
        event = json.loads(block["data"])
        seen[event["job_id"]] = event["seq"]
        assert block["id"] == str(Positions(job_ids, list(seen.values())))
        assert Positions.read(block["id"], job_ids) is not None


@pytest.mark.parametrize("how", ["header", "query", "both"])
async def test_a_reader_resumes_at_every_position_without_loss_or_repeat(served: Served, how: str):
    job_ids = await finished(served, 2)
    whole = (await read(served, job_ids))[2:]
    for at, block in enumerate(whole[:-1]):
        headers = {} if how == "query" else {"Last-Event-ID": block["id"]}
        query = {"header": {}, "query": {"after": block["id"]}, "both": {"after": whole[0]["id"]}}[how]
        answer = await served.http.get("/events", params={"job": job_ids, **query}, headers=headers)
        before, rest = told(whole[: at + 1]), told(frames(answer.text))
        assert {job_id: before.get(job_id, []) + rest.get(job_id, []) for job_id in job_ids} == told(whole)
        assert "snapshot" not in answer.text


async def test_who_has_read_everything_gets_204(served: Served):
    job_ids = await finished(served)
    last = (await read(served, job_ids))[-1]["id"]
    answer = await served.http.get("/events", params={"job": job_ids}, headers={"Last-Event-ID": last})
    assert answer.status_code == 204


async def test_a_stream_goes_on_until_the_last_job_has_ended(backend: Backend):
    held, gate = gated()
    async with serving(held, backend=backend) as service:
        job_id = await service.submit()
        call = asyncio.create_task(service.invoke())
        await wait_until(gate.entered.is_set, "the run is under way")
        (run,) = service.services.runtime._runs
        await service.http.post(f"/jobs/{job_id}/cancel")
        async with service.http.stream("GET", "/events", params={"job": [job_id, run.job_id]}) as answer:
            texts = answer.aiter_text()
            text = ""
            while "pipeline_canceled" not in text:
                text += await anext(texts)
            gate.opened.set()
            text += "".join([chunk async for chunk in texts])
        await call
    assert frames(text)[-1]["event"] == "pipeline_completed"
    assert set(told(frames(text))) == {job_id, run.job_id}


async def test_types_choose_events_and_the_end_is_still_known(served: Served):
    job_ids = await finished(served)
    blocks = await read(served, job_ids, types="step_started")
    assert {block["event"] for block in blocks[:-1]} == {"snapshot", "step_started"}
    assert set(blocks[-1]) == {"id"}
    headers = {"Last-Event-ID": blocks[-1]["id"]}
    assert (await served.http.get("/events", params={"job": job_ids}, headers=headers)).status_code == 204


async def test_a_position_of_other_jobs_is_400(served: Served):
    job_ids = await finished(served)
    last = (await read(served, job_ids))[-1]["id"]
    for jobs in (job_ids[:2], job_ids[::-1], [*job_ids[:2], await served.submit({"text": "b"})]):
        answer = await served.http.get("/events", params={"job": jobs}, headers={"Last-Event-ID": last})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        assert "order" in answer.json()["detail"]


@pytest.mark.parametrize("position", ["3", "abcdef:1.2.3", "{tag}:1.2", "{tag}:1.2.x", "{tag}:1.2.-3", "{tag}:"])
async def test_a_position_that_is_none_is_400(served: Served, position: str):
    job_ids = await submitted(served)
    tag = str(Positions(job_ids)).partition(":")[0]
    answer = await served.http.get("/events", params={"job": job_ids, "after": position.format(tag=tag)})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def test_an_unknown_job_is_404_and_named(served: Served):
    job_ids = await submitted(served)
    unknown = job_ids[0][:-4] + "ffff"
    answer = await served.http.get("/events", params={"job": [*job_ids, unknown]})
    assert answer.status_code == 404
    assert unknown in answer.json()["detail"]


@pytest.mark.parametrize("count", [0, 101])
async def test_a_stream_has_one_to_a_hundred_jobs(served: Served, count: int):
    job_id = await served.submit({"text": "a"})
    answer = await served.http.get("/events", params={"job": [job_id] * count})
    assert answer.status_code == 422


async def test_trimmed_events_of_a_job_are_told_as_its_gap(store_url: str):
    from pipeserve.settings import StoreSettings
    from pipeserve.store import open_store

    settings = StoreSettings.from_environment(redis_url=store_url, lease_seconds=60)
    async with (
        open_store(settings) as store,
        store.deployment("d") as backend,
        serving(shout, backend=backend) as service,
    ):
        whole, trimmed = await submitted(service, 2)
        await backend.ledger.claim("owner", 2)
        log = encode_body(Event(EventType.LOG, trimmed, 1, message="x"))
        await backend.ledger.append(trimmed, 1, [log] * 5, RunView())
        await backend.redis.xtrim(backend.keys.events(trimmed), maxlen=2, approximate=False)
        async with service.http.stream("GET", "/events", params={"job": [whole, trimmed], "after": ""}) as answer:
            text = ""
            async for chunk in answer.aiter_text():
                text += chunk
                if text.count("event: log") == 2 and "event: job_queued" in text:
                    break
    (gap,) = (block for block in frames(text) if block.get("event") == "gap")
    assert json.loads(gap["data"]) == {"job_id": trimmed, "from": 1, "to": 4, "reason": "trimmed"}
    position = Positions.read(gap["id"], [whole, trimmed])
    assert position is not None
    assert position.numbers[1] == 4


async def test_the_stream_ends_with_a_retry_when_the_service_drains(served: Served):
    job_ids = await submitted(served)
    async with served.http.stream("GET", "/events", params={"job": job_ids}) as answer:
        served.drain.begin()
        text = "".join([chunk async for chunk in answer.aiter_text()])
    assert text.endswith("retry: 1000\n\n")


class Torn(JobLog):
    """A log that can't be read, for a reason that nobody has thought of."""

    async def read(self, *, after: int, limit: int) -> list[LogEntry | LogGap]:
        raise ValueError

    def follow(self, *, after: int) -> Follower:
        return TornFollower(after, asyncio.Event())


class TornFollower(WokenFollower):
    async def __aexit__(self, *_: object) -> None:
        pass

    def _read(self, after: int) -> tuple[list[LogEntry | LogGap], bool]:
        raise ValueError("there is no reading this")


async def test_a_log_that_can_not_be_read_does_not_leave_its_reader_waiting():
    job_ids = ["a", "b"]
    async with (
        MergedFrames(job_ids, [Torn(), Torn()], Positions(job_ids), finished=frozenset(), types=None) as merged,
        asyncio.timeout(5),
    ):
        with pytest.raises(ValueError, match="no reading"):
            await merged.next()


class Watched(StoredLog):
    """Says who reads it."""

    def __init__(self, log: EventLog, job_id: str, followers: list[Follower]) -> None:
        super().__init__(log, job_id)
        self._followers = followers

    @asynccontextmanager
    async def follow(self, *, after: int) -> AsyncIterator[Follower]:
        async with super().follow(after=after) as follower:
            self._followers.append(follower)
            yield follower


async def test_many_logs_share_what_one_reader_may_hold(served: Served):
    job_ids = await submitted(served, 100)
    followers: list[Follower] = []
    logs = [Watched(served.services.log, job_id, followers) for job_id in job_ids]
    async with MergedFrames(job_ids, logs, Positions(job_ids), finished=frozenset(), types=None):
        await wait_until(lambda: len(followers) == 100, "all are followed")
        await wait_until(lambda: sum(one.batch_bytes for one in followers) < 1_000_000, "all take their share")
