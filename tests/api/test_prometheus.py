"""What Prometheus reads: histograms over the whole service, answers of each process, and labels that stay few."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tests.api.harness import Served, serving, wait_until
from tests.api.pipelines import shout

from pipeserve.runtime.latency import histogram
from pipeserve_api.prometheus import BOUNDS, cumulative, total


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(shout) as service:
        yield service


async def scrape(served: Served) -> dict[str, Metric]:
    text = (await served.http.get("/metrics", params={"format": "prometheus"})).text
    return {family.name: family for family in parse_text(text)}


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
        text = (await service.http.get("/metrics", params={"format": "prometheus"}, headers=key)).text
    assert (
        'pipeserve_http_request_duration_seconds_count{method="POST",pipeline="shout",route="/invoke",status="2xx"}'
        in text
    )
    assert 'route="other",status="4xx"} 1.0' in text


async def test_the_process_tells_of_itself(served: Served) -> None:
    families = await scrape(served)
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    assert families["process_open_fds"].samples[0].value > 3
