"""What a caller and an operator see of the step cache: headers, metadata, figures, and requests that want it fresh."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.api.away import AwayStore
from tests.api.harness import Served, serving, wait_until
from tests.api.worker import working

from pipeserve import Batch, Cache, Capture, Retry, pipeline, step
from pipeserve.runtime.memory import MemoryStore
from pipeserve.sdk.pipeline import Pipeline
from pipeserve_api.cache_status import cache_headers

UNCACHED = {"cache-control": "no-cache"}
UNKEPT = {"cache-control": "no-store"}


def counting(*, capture: Capture | None = None, policy: Cache | bool = True) -> tuple[Pipeline[..., Any], Counter[str]]:
    """A pipeline of a cached step and a plain one, and how often each text was really embedded."""
    calls: Counter[str] = Counter()

    @step(cache=policy)
    def embed(text: str, size: int = 2) -> list[int]:
        calls[text] += 1
        return [len(text)] * size

    @step
    def total(values: list[int]) -> int:
        return sum(values)

    @pipeline(capture=capture)
    def measure(text: str) -> int:
        return total(embed(text))

    return measure, calls


async def status_of(service: Served, text: str, **headers: str) -> str | None:
    answer = await service.invoke({"text": text}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.headers.get("cache-status")


# ---- one answer


async def test_an_equal_call_is_a_hit_and_the_answer_says_so():
    measure, calls = counting(policy=Cache(ttl=30))
    async with serving(measure) as service:
        first = await service.invoke({"text": "four"})
        again = await service.invoke({"text": "four"})
        assert calls == {"four": 1}
        assert first.json()["outputs"] == again.json()["outputs"] == {"output": 8}

        assert first.headers["cache-status"] == "embed;fwd=uri-miss;stored"
        assert first.json()["metadata"]["cache"] == {"hits": 0, "misses": 1}
        embed, total = first.json()["metadata"]["steps"]
        assert (embed["cached"], embed["cache"]["status"], embed["cache"]["reason"]) == (False, "miss", "first_call")
        assert set(total) == {"name", "status", "attempt", "started_at", "duration", "cached"}, "a plain step says less"

        assert again.headers["cache-status"] in ("embed;hit;ttl=29", "embed;hit;ttl=30")
        assert again.json()["metadata"]["cache"] == {"hits": 1, "misses": 0}
        embed = again.json()["metadata"]["steps"][0]
        assert (embed["cached"], embed["cache"]["status"]) == (True, "hit")
        assert embed["cache"]["saved"] > 0


async def test_a_miss_names_what_changed_and_never_the_value():
    measure, _ = counting()
    async with serving(measure) as service:
        await service.invoke({"text": "planted-marker"})
        answer = await service.invoke({"text": "planted-marker", "embed.size": 3})
        embed = answer.json()["metadata"]["steps"][0]
        assert (embed["cache"]["reason"], embed["cache"]["changed"]) == ("changed", ["size"])
        assert "planted-marker" not in str(answer.json()["metadata"])
        assert "planted-marker" not in str(answer.headers)


async def test_no_cache_computes_anew_and_keeps_the_result():
    measure, calls = counting()
    async with serving(measure) as service:
        await service.invoke({"text": "a"})
        assert await status_of(service, "a", **UNCACHED) == "embed;fwd=request;stored"
        assert calls["a"] == 2
        assert "hit" in str(await status_of(service, "a"))
        assert await status_of(service, "b", **{"cache-control": "max-age=0, No-Cache"}) == "embed;fwd=request;stored"
        assert "hit" in str(await status_of(service, "b")), "it was kept"


async def test_no_store_neither_reads_nor_keeps():
    measure, calls = counting()
    async with serving(measure) as service:
        assert await status_of(service, "a", **UNKEPT) == "embed;fwd=request"
        assert await status_of(service, "a", **{"cache-control": "no-cache, no-store"}) == "embed;fwd=request"
        assert "hit" not in str(await status_of(service, "a"))
        assert await status_of(service, "a", **UNKEPT) == "embed;fwd=request", "what is there is not read either"
        assert calls["a"] == 4


async def test_other_directives_change_nothing():
    measure, _ = counting()
    async with serving(measure) as service:
        await service.invoke({"text": "a"})
        assert "hit" in str(await status_of(service, "a", **{"cache-control": "max-age=0, only-if-cached"}))


async def test_an_expired_result_is_stale():
    measure, _ = counting(policy=Cache(ttl=0.05))
    async with serving(measure) as service:
        await service.invoke({"text": "a"})

        async def stale() -> bool:
            return await status_of(service, "a") == "embed;fwd=stale;stored"

        await wait_until(stale, "the result has expired")


async def test_an_argument_that_cannot_be_compared_is_named_and_no_error():
    class Handle:
        """Nothing that two of them could be compared by."""

    @step
    def connect() -> Handle:
        return Handle()

    @step(cache=True)
    def ask(handle: Handle, question: str) -> str:
        return question.upper()

    @pipeline
    def asking(question: str) -> str:
        return ask(connect(), question)

    async with serving(asking) as service:
        answer = await service.invoke({"question": "why"})
        assert answer.json()["outputs"] == {"output": "WHY"}
        assert answer.headers["cache-status"] == 'ask;fwd=bypass;detail="argument can\'t be compared: handle"'
        receipt = answer.json()["metadata"]["steps"][1]["cache"]
        assert (receipt["reason"], receipt["changed"]) == ("unhashable", ["handle"])
        assert answer.json()["metadata"]["cache"] == {"hits": 0, "misses": 1}


async def test_members_stand_in_the_order_of_the_calls_and_only_for_steps_that_can_cache():
    @step(cache=True)
    def number(text: str) -> int:
        return len(text)

    @step
    def double(value: int) -> int:
        return 2 * value

    @step(cache=Cache(ttl=5))
    def str_of(value: int) -> str:
        return str(value)

    @pipeline
    def chain(text: str) -> int:
        return double(number.with_name("second")(str_of(number.with_name("first")(text))))

    async with serving(chain) as service:
        await service.invoke({"text": "a"})
        answer = await service.invoke({"text": "b"})
        assert [member.split(";")[:2] for member in answer.headers["cache-status"].split(", ")] == [
            ["first", "fwd=uri-miss"],
            ["str_of", "hit"],
            ["second", "hit"],
        ]
        assert answer.json()["metadata"]["cache"] == {"hits": 2, "misses": 1}


async def test_a_call_that_fails_tells_of_the_cache_all_the_same():
    @step(cache=True)
    def fine(text: str) -> str:
        return text

    @step
    def broken(text: str) -> str:
        raise ValueError(text)

    @pipeline
    def failing(text: str) -> str:
        return broken(fine(text))

    async with serving(failing) as service:
        await service.invoke({"text": "a"})
        answer = await service.invoke({"text": "a"})
        assert answer.status_code == 500
        assert answer.headers["cache-status"].startswith("fine;hit")


async def test_a_pipeline_without_cached_steps_has_no_such_header():
    measure, _ = counting(policy=False)
    async with serving(measure) as service:
        answer = await service.invoke({"text": "a"})
        assert "cache-status" not in answer.headers
        assert answer.json()["metadata"]["cache"] == {"hits": 0, "misses": 0}


async def test_names_that_are_no_tokens_are_quoted():
    names = {"plain": "plain", "two words": '"two words"', "größe": "gr%C3%B6%C3%9Fe", "9th": '"9th"', 'a"b': '"a\\"b"'}
    for name, shown in names.items():
        assert cache_headers([(name, {"status": "bypass", "stored": True})]) == {
            "cache-status": f"{shown};fwd=request;stored"
        }


async def test_the_header_is_bounded_and_ends_after_a_whole_member():
    @step(cache=True)
    def a_step_with_a_rather_long_name(number: int) -> int:
        return number

    @pipeline(dynamic=True)
    def many(count: int) -> int:
        return sum(a_step_with_a_rather_long_name(number) for number in range(count))

    async with serving(many) as service:
        answer = await service.invoke({"count": 500})
        header = answer.headers["cache-status"]
        assert 4000 < len(header) <= 4096
        assert all(member.endswith(";fwd=uri-miss;stored") for member in header.split(", "))
        assert answer.json()["metadata"]["cache"] == {"hits": 0, "misses": 500}


async def test_retries_and_batches_are_told_in_the_metadata():
    tries = itertools.count(1)

    @step(retry=Retry(attempts=3, backoff=0))
    def shaky(text: str) -> str:
        if next(tries) < 3:
            raise ConnectionError("not yet")
        return text

    @step(batch=Batch(max_size=4, max_wait_ms=1))
    def lengths(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    @pipeline
    def both(text: str) -> int:
        return lengths(shaky(text))

    async with serving(both) as service:
        steps = (await service.invoke({"text": "abc"})).json()["metadata"]["steps"]
        assert [(step["name"], step.get("calls"), step.get("batch")) for step in steps] == [
            ("shaky", 3, None),
            ("lengths", None, 1),
        ]


# ---- several callers at once


class Turnstile:
    """Holds a step until a test lets it through."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.passed = 0

    def hold(self) -> None:
        self.entered.release()
        assert self.opened.wait(10)
        self.passed += 1


@pytest.fixture
def turnstile() -> Iterator[Turnstile]:
    gate = Turnstile()
    yield gate
    gate.opened.set()


def guarded(gate: Turnstile) -> Pipeline[..., Any]:
    @step(cache=True)
    def slow(text: str) -> str:
        gate.hold()
        return text.upper()

    @pipeline
    def once(text: str) -> str:
        return slow(text)

    return once


async def test_equal_calls_at_once_compute_once(turnstile: Turnstile):
    async with serving(guarded(turnstile)) as service:
        calls = [asyncio.create_task(service.invoke({"text": "a"})) for _ in range(8)]
        cache = service.services.runtime.cache
        await wait_until(lambda: cache.figures().joined == 7, "seven wait for the eighth")
        turnstile.opened.set()
        answers = await asyncio.gather(*calls)
        assert turnstile.passed == 1
        assert {answer.json()["outputs"]["output"] for answer in answers} == {"A"}
        assert Counter(answer.headers["cache-status"] for answer in answers) == {
            "slow;fwd=uri-miss;stored": 1,
            "slow;fwd=uri-miss;collapsed": 7,
        }
        assert sum(answer.json()["metadata"]["cache"]["hits"] for answer in answers) == 7


async def test_a_caller_that_leaves_takes_the_result_from_nobody(turnstile: Turnstile):
    async with serving(guarded(turnstile)) as service:
        leader = asyncio.create_task(service.invoke({"text": "a"}))
        await wait_until(lambda: turnstile.entered.acquire(blocking=False), "the first computes")
        follower = asyncio.create_task(service.invoke({"text": "a"}))
        await wait_until(lambda: service.services.runtime.cache.figures().joined == 1, "the second waits for it")
        leader.cancel()
        await asyncio.wait([leader])
        turnstile.opened.set()
        answer = await follower
        assert (answer.status_code, answer.json()["outputs"]) == (200, {"output": "A"})
        assert turnstile.passed == 1


# ---- jobs


async def test_a_queued_job_tells_the_same_with_its_result():
    measure, calls = counting(policy=Cache(ttl=30))
    async with serving(measure) as service, working(service):
        first = await service.submit({"text": "four"})
        again = await service.submit({"text": "four"})
        await service.http.get(f"/jobs/{again}?wait=10")
        assert calls == {"four": 1}
        result = await service.http.get(f"/jobs/{first}/result")
        assert result.headers["cache-status"] == "embed;fwd=uri-miss;stored"
        result = await service.http.get(f"/jobs/{again}/result")
        assert result.headers["cache-status"].startswith("embed;hit;ttl=")
        assert result.json()["metadata"]["cache"] == {"hits": 1, "misses": 0}
        embed, total = result.json()["metadata"]["steps"]
        assert (embed["cached"], embed["cache"]["status"]) == (True, "hit")
        assert set(total) == {"name", "status", "attempt", "started_at", "duration", "cached"}
        record = (await service.http.get(f"/jobs/{again}")).json()["steps"][0]
        assert (record["calls"], record["cache"]["status"], record["resumed"]) == (1, "hit", False)


async def test_what_a_request_wants_of_the_cache_travels_with_its_job():
    measure, calls = counting()
    async with serving(measure) as service, working(service):
        statuses: list[str] = []
        for headers in ({}, UNKEPT, UNCACHED, {}):
            job_id = await service.submit({"text": "a"}, headers=headers)
            await service.http.get(f"/jobs/{job_id}?wait=10")
            statuses.append((await service.http.get(f"/jobs/{job_id}/result")).headers["cache-status"])
        assert calls["a"] == 3
        assert statuses[:3] == ["embed;fwd=uri-miss;stored", "embed;fwd=request", "embed;fwd=request;stored"]
        assert "hit" in statuses[3]


async def test_the_events_of_a_step_carry_its_receipt():
    measure, _ = counting()
    async with serving(measure) as service:
        await service.invoke({"text": "a"})
        job_id = (await service.invoke({"text": "a"})).json()["job_id"]
        events = (await service.http.get(f"/jobs/{job_id}/events")).json()["events"]
        ended = [event["data"] for event in events if event["event_type"] == "step_completed"]
        assert [data["cached"] for data in ended] == [True, False]
        assert ended[0]["cache"]["status"] == "hit"
        assert "cache" not in ended[1]


async def test_without_metadata_the_answer_tells_and_nothing_is_kept():
    measure, _ = counting(capture=Capture(metadata=False))
    async with serving(measure) as service:
        await service.invoke({"text": "a"})
        answer = await service.invoke({"text": "a"})
        assert "hit" in answer.headers["cache-status"]
        assert answer.json()["metadata"]["cache"] == {"hits": 1, "misses": 0}
        assert answer.json()["metadata"]["steps"] == []
        job_id = answer.json()["job_id"]
        events = (await service.http.get(f"/jobs/{job_id}/events")).json()["events"]
        assert all("cache" not in event["data"] for event in events)
        assert (await service.http.get(f"/jobs/{job_id}")).json()["steps"] == []


class NotedCache:
    """A shared cache that counts what it was given."""

    def __init__(self, cache: Any) -> None:
        self.get = cache.get
        self.kept = 0
        self._cache = cache

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        await self._cache.set(key, value, ttl)
        self.kept += 1


async def test_processes_share_what_the_store_keeps():
    store: Any = MemoryStore()
    store.cache = NotedCache(store.cache)
    measure, calls = counting(policy=Cache(scope="shared", ttl=30))
    async with serving(measure, backend=store) as one, serving(measure, backend=store) as other:
        assert await status_of(one, "a") == "embed;fwd=uri-miss;stored"
        await wait_until(lambda: store.cache.kept, "the store has it")
        shared = str(await status_of(other, "a"))
        assert shared.startswith("embed;hit;ttl=")
        assert shared.endswith(";detail=shared")
        assert calls["a"] == 1
        assert not str(await status_of(other, "a")).endswith(";detail=shared"), "now it is in this process too"
        assert await status_of(other, "a", **UNCACHED) == "embed;fwd=request;stored"
        assert calls["a"] == 2


async def test_a_request_that_wants_nothing_kept_leaves_nothing_in_the_store():
    store: Any = MemoryStore()
    store.cache = NotedCache(store.cache)
    measure, _ = counting(policy=Cache(scope="shared", ttl=30))
    async with serving(measure, backend=store) as service:
        await service.invoke({"text": "a"}, headers=UNKEPT)
        await service.invoke({"text": "b"})
        await wait_until(lambda: store.cache.kept, "the store has the second")
        assert store.cache.kept == 1


async def test_a_memory_only_pipeline_shares_nothing():
    store: Any = MemoryStore()
    store.cache = NotedCache(store.cache)
    measure, calls = counting(policy=Cache(scope="shared", ttl=30), capture=Capture(memory_only=True))
    async with serving(measure, backend=store) as one, serving(measure, backend=store) as other:
        for service in (one, other):
            assert await status_of(service, "a") == "embed;fwd=uri-miss;stored"
    assert (store.cache.kept, calls["a"]) == (0, 2)


# ---- figures


async def cache_of(service: Served) -> dict[str, Any]:
    return (await service.http.get("/metrics")).json()["cache"]


@pytest.mark.parametrize("capture", [Capture(), Capture(memory_only=True)], ids=["captured", "memory_only"])
async def test_metrics_count_hits_misses_and_what_is_kept(capture: Capture):
    measure, _ = counting(capture=capture)
    async with serving(measure) as service:
        for text in ("a", "b", "a", "a"):
            await service.invoke({"text": text})

        async def counted() -> bool:
            figures = await cache_of(service)
            return figures["hits"] + figures["misses"] == 4

        await wait_until(counted, "all runs are counted")
        figures = await cache_of(service)
        assert (figures["hits"], figures["misses"], figures["hit_rate"], figures["entries"]) == (2, 2, 0.5, 2)
        assert figures["bytes"] > 0
        assert figures["saved_seconds"] > 0
        text = (await service.http.get("/metrics?format=prometheus")).text
        families = {
            family.name: family.samples[0].value
            for family in text_string_to_metric_families(text)
            if family.samples  # no latencies are there where nothing is told outside
        }
        if capture.memory_only:  # which no other process knows
            assert families["pipeserve_memory_only_cache_hits"] == families["pipeserve_memory_only_cache_misses"] == 2
            return
        assert families["pipeserve_cache_hits"] == families["pipeserve_cache_misses"] == 2
        assert families["pipeserve_cache_entries"] == 2
        assert families["pipeserve_cache_bytes"] == figures["bytes"]
        assert families["pipeserve_cache_saved_seconds"] == pytest.approx(figures["saved_seconds"])


async def test_metrics_add_up_what_several_processes_keep_and_count_none_twice():
    store = MemoryStore()
    measure, _ = counting()
    async with serving(measure, backend=store) as one, serving(measure, backend=store) as other:
        for text in ("a", "b"):
            await one.invoke({"text": text})
        await other.invoke({"text": "a"})
        assert (await cache_of(one))["entries"] == 2, "the other has not been asked, and has told nothing yet"
        assert (await cache_of(other))["entries"] == 3
        assert (await cache_of(one))["entries"] == 3
        await one.invoke({"text": "c"})
        assert (await cache_of(one))["entries"] == 4


async def test_without_the_store_metrics_tell_what_this_process_keeps():
    measure, _ = counting()
    async with serving(measure, backend=AwayStore()) as service:
        await service.invoke({"text": "a"})
        figures = await cache_of(service)
        assert figures["entries"] == 1
        assert figures["bytes"] > 0


async def test_without_metrics_nothing_is_counted():
    measure, _ = counting(capture=Capture(metrics=False))
    async with serving(measure) as service:
        await service.invoke({"text": "a"})

        async def ended() -> bool:
            return (await service.http.get("/metrics")).json()["successful_executions"] == 1

        await wait_until(ended, "the run is recorded")
        assert (await cache_of(service))["misses"] == 0
