"""What Prometheus reads: histograms over the whole service, answers of each process, and labels that stay few."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tests.api.away import AwayStore
from tests.api.harness import Served, serving, wait_until
from tests.api.pipelines import failing, gated, secretive, shout
from tests.api.socket_client import socket

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.latency import histogram, middle
from pipeserve.runtime.memory import MemoryStore
from pipeserve_api.families import BOUNDS, cumulative, total
from pipeserve_api.loop_lag import LoopLag


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(shout) as service:
        yield service


async def scrape(served: Served) -> dict[str, Metric]:
    text = (await served.http.get("/metrics", params={"format": "prometheus"})).text
    return {family.name: family for family in parse_text(text)}


async def value(served: Served, name: str, **labels: str) -> float | None:
    """The sum of the samples of this name that have these labels; None: there are none."""
    found = [
        sample.value
        for family in (await scrape(served)).values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(found) if found else None


class BrittleOperations:
    """Operations that are away, or hang, when told so."""

    def __init__(self, operations: Any) -> None:
        self._operations = operations
        self.away = False
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operations, name)

    async def figures(self) -> Any:
        self.asked += 1
        await self.thawed.wait()
        if self.away:
            raise StoreUnavailableError("The job store is away.")
        return await self._operations.figures()


def brittle() -> tuple[Any, BrittleOperations]:
    store: Any = MemoryStore()
    operations = BrittleOperations(store.operations)
    store.operations = operations
    return store, operations


@given(st.lists(st.floats(min_value=0, max_value=5000), max_size=50))
def test_buckets_hold_what_was_observed_to_a_twentieth(values: list[float]) -> None:
    buckets = histogram(values)
    rows = cumulative(buckets)
    assert rows[-1] == ("+Inf", len(values))
    assert [count for _, count in rows] == sorted(count for _, count in rows)
    for bound, (_, count) in zip(BOUNDS, rows, strict=False):
        assert sum(value <= bound * 0.95 for value in values) <= count <= sum(value <= bound * 1.05 for value in values)
    assert total(buckets) == pytest.approx(sum(max(value, 1e-6) for value in values), rel=0.05, abs=1e-4)


async def test_runs_are_counted_once_whatever_ran_them(served: Served) -> None:
    for _ in range(3):
        await served.invoke({"text": "a"})

    async def counted() -> bool:
        samples = (await scrape(served))["pipeserve_run_duration_seconds"].samples
        return [sample.value for sample in samples if sample.name.endswith("_count")] == [3]

    await wait_until(counted, "three runs are counted")


async def test_answers_are_counted_by_route_and_not_by_path(served: Served) -> None:
    await served.invoke({"text": "a"})
    await served.invoke({"text": 1})
    job_id = await served.submit({"text": "a"})
    await served.http.get(f"/jobs/{job_id}")
    await served.http.get("/jobs/01890000-0000-7000-8000-000000000000")
    for path in ("/never", "/jobs/a/b/c/d", "/%00", "/invoke/x"):
        await served.http.get(path)
    await served.http.request("PURGE", "/jobs")
    family = (await scrape(served))["pipeserve_http_request_duration_seconds"]
    found = {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for sample in family.samples
        if sample.name.endswith("_count")
    }
    assert found == {
        ("POST", "/invoke", "2xx"): 2,
        ("POST", "/invoke", "4xx"): 1,
        ("GET", "/jobs/{job_id}", "2xx"): 1,
        ("GET", "/jobs/{job_id}", "4xx"): 1,
        ("GET", "other", "4xx"): 4,
        ("other", "/jobs", "4xx"): 1,
    }


async def test_a_stream_and_a_refused_caller_are_counted_too() -> None:
    async with serving(shout, service={"auth_key": "k"}) as service:
        key = {"X-API-Key": "k"}
        await service.http.get("/jobs")
        answer = await service.invoke({"text": "a"}, headers={"Accept": "text/event-stream", **key})
        assert answer.status_code == 200
        service.http.headers.update(key)
        name = "pipeserve_http_request_duration_seconds_count"
        assert await value(service, name, method="POST", route="/invoke", status="2xx") == 1
        assert await value(service, name, route="other", status="4xx") == 1


async def test_the_process_tells_of_itself(served: Served) -> None:
    families = await scrape(served)
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    assert families["process_open_fds"].samples[0].value > 3


async def test_what_only_the_store_knows_is_left_out_while_it_is_away() -> None:
    """Zeros would look like a restart, and all that comes back like new runs."""
    store, operations = brittle()
    async with serving(shout, backend=store) as service:
        before = set(await scrape(service))
        operations.away = True
        gone = before - set(await scrape(service))
        assert {"pipeserve_executions", "pipeserve_cache_hits", "pipeserve_run_duration_seconds"} <= gone
        assert {"pipeserve_queue_depth", "pipeserve_workers", "pipeserve_fenced_writes"} <= gone
        assert not {"pipeserve_store_available", "pipeserve_http_request_duration_seconds"} & gone
        operations.away = False
        assert set(await scrape(service)) == before


async def test_a_store_that_hangs_is_waited_for_once_and_not_for_long() -> None:
    store, operations = brittle()
    async with serving(shout, backend=store) as service:
        operations.thawed.clear()
        bodies = await asyncio.gather(*(service.http.get("/metrics") for _ in range(3)))
        assert [answer.json()["store_available"] for answer in bodies] == [False] * 3
        assert operations.asked == 1
        assert await value(service, "pipeserve_store_available") == 0
        assert operations.asked == 1
        operations.thawed.set()

        async def back() -> bool:
            return await value(service, "pipeserve_store_available") == 1

        await wait_until(back, "the store answers")


async def test_memory_only_runs_are_this_processs_own() -> None:
    async with serving(secretive) as service:
        await service.invoke({"text": "a"})
        assert await value(service, "pipeserve_memory_only_executions_total", outcome="completed") == 1
        assert await value(service, "pipeserve_executions_total") == 0


async def test_what_one_process_counts_names_it_and_what_the_service_counts_does_not(served: Served) -> None:
    await served.invoke({"text": "a"})
    families = await scrape(served)
    own = {name for name in families if name.startswith(("process_", "pipeserve_http", "pipeserve_publisher"))}
    whole = {"pipeserve_executions", "pipeserve_queue_depth", "pipeserve_run_duration_seconds"}
    assert len(own) > 8
    for name in own:
        assert {sample.labels["process"] for sample in families[name].samples} <= {str(os.getpid())}, name
    for name in whole:
        assert all("process" not in sample.labels for sample in families[name].samples), name


async def test_problems_are_counted_by_code_and_a_pipelines_own_as_one() -> None:
    async with serving(failing) as service:
        await service.invoke({"kind": "polite"})
        await service.invoke({"kind": "rude"})
        await service.http.get('/jobs/","code":"draining"')
        await service.http.post("/invoke", content=b"{")
        problems = (await scrape(service))["pipeserve_http_problems"].samples
        codes = {sample.labels["code"]: sample.value for sample in problems if sample.name.endswith("_total")}
        assert codes == {"invocation_error": 1, "step_failed": 1, "not_found": 1, "bad_request": 1}


async def test_open_streams_and_sockets_are_counted_while_they_are_open() -> None:
    held, gate = gated()
    async with serving(held) as service:
        job_id = (await service.invoke({"text": "a"}, headers={"Prefer": "respond-async"})).json()["job_id"]
        async with service.http.stream("GET", f"/stream/{job_id}"), socket(service):
            assert await value(service, "pipeserve_open_streams") == 1
            assert await value(service, "pipeserve_open_sockets") == 1

        async def left() -> bool:
            open_now = [await value(service, f"pipeserve_open_{name}") for name in ("streams", "sockets")]
            return open_now == [0, 0]

        await wait_until(left, "both are closed")
        gate.opened.set()


async def test_a_caller_who_leaves_before_the_answer_counts_as_unanswered(served: Served) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", served.http.base_url.port)
    writer.write(b"POST /invoke HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
    await writer.drain()
    writer.close()
    name = "pipeserve_http_request_duration_seconds_count"

    async def counted() -> bool:
        return await value(served, name, route="/invoke", status="none") == 1

    await wait_until(counted, "the request is counted")
    assert await value(served, name, route="/invoke", status="2xx") is None


async def test_a_held_event_loop_is_seen() -> None:
    with LoopLag(interval=0.001) as lag:
        await asyncio.sleep(0)
        time.sleep(0.05)  # noqa: ASYNC251 - what a step must not do
        await wait_until(lambda: any(middle(bucket) > 0.03 for bucket in lag.buckets), "it is seen")


async def test_how_late_the_event_loop_comes_is_looked_at(served: Served) -> None:
    async def looked() -> bool:
        return bool(await value(served, "pipeserve_event_loop_lag_seconds_count"))

    await wait_until(looked, "the loop was looked at")


async def test_a_service_whose_store_never_was_there_can_be_scraped() -> None:
    async with serving(shout, backend=AwayStore()) as service:
        assert await value(service, "pipeserve_store_available") == 0
        assert await value(service, "pipeserve_executions_total") is None
