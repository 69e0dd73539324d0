"""Switches that no planted mark can show: ``metrics``, times and receipts of ``metadata``, and ``memory_only``."""

from __future__ import annotations

from typing import Any

import pytest
from tests.capture.places import Places, places
from tests.capture.planted import MARKS, PARAMETERS, planted

from pipeserve import Cache, Capture, Pipeline, pipeline, step

pytestmark = pytest.mark.e2e  # each runs the service over an own store

ALL_MARKS = [mark.encode() for marks in MARKS.values() for mark in marks.values()]


def cached(capture: Capture) -> Pipeline[..., Any]:
    @step(cache=Cache(ttl=60))
    def double(x: int) -> int:
        return 2 * x

    @pipeline(capture=capture)
    def serve(x: int) -> int:
        return double(x)

    return serve


async def figures(around: Places) -> tuple[dict[str, Any], str]:
    http = around.served.http
    return (await http.get("/metrics")).json(), (await http.get("/metrics", params={"format": "prometheus"})).text


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_metrics_are_counted(mode: str, store_url: str) -> None:
    async with places(cached(Capture()), store_url) as around:
        for _ in range(2):
            await around.call({"x": 4}, mode=mode)
        found, text = await figures(around)
        counters = (await around.backend.operations.figures()).counters
    assert found["latency"][mode]["p50"] is not None
    assert found["latency"]["step"]["p50"] is not None
    assert counters["cache_hits"] == 1
    assert f'pipeserve_call_duration_seconds_count{{mode="{mode}",pipeline=' in text


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_without_metrics_no_latency_and_no_counter_of_a_run_is_kept(mode: str, store_url: str) -> None:
    async with places(cached(Capture(metrics=False)), store_url) as around:
        for _ in range(2):
            await around.call({"x": 4}, mode=mode)
        found, text = await figures(around)
        counters = (await around.backend.operations.figures()).counters
        stored = await around.stored()
    assert {value for kind in found["latency"].values() for value in kind.values()} == {None}
    assert found["cache"]["hits"] == found["cache"]["misses"] == 0
    assert counters == {}
    assert "pipeserve_latency_seconds{" not in text
    assert b"cache_hits" not in stored
    assert found["total_executions"] == 2  # that jobs have ended is no figure of their steps


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_without_metadata_the_job_has_no_times_of_steps_and_no_receipts(mode: str, store_url: str) -> None:
    async with places(cached(Capture(metadata=False)), store_url) as around:
        job_id, answer = await around.call({"x": 4}, mode=mode)
        http = around.served.http
        job = (await http.get(f"/jobs/{job_id}")).json()
        events = (await http.get(f"/jobs/{job_id}/events")).json()["events"]
        explained = (await http.get(f"/jobs/{job_id}/explain")).text
        stored = await around.stored()
    assert job["parameters"] is None
    assert job["steps"] == []
    for event in events:
        assert not {"duration", "cache"} & event["data"].keys(), event["event_type"]
    assert events[0 if mode == "sync" else 1]["data"]["parameters_applied"] == []
    assert "first_call" not in explained
    assert b"first_call" not in stored
    if mode == "sync":
        assert answer.json()["metadata"]["steps"] == []


async def test_a_memory_only_call_leaves_nothing_outside_the_process(store_url: str) -> None:
    capture = Capture(memory_only=True, code=False)  # the deployment's record is there before any call
    async with places(planted(capture), store_url, worker=False) as around:
        before = await around.stored()
        _, answer = await around.call(PARAMETERS, mode="sync")
        assert answer.status_code == 200
        assert await around.stored() == before


async def test_a_memory_only_job_leaves_its_ledger_entry_alone(store_url: str) -> None:
    async with places(planted(Capture(memory_only=True, code=False)), store_url) as around:
        job_id, _ = await around.call(PARAMETERS, mode="async")
        stored = await around.stored()
        told = await around.told(job_id)
        http = around.served.http
        events = (await http.get(f"/jobs/{job_id}/events")).json()["events"]
        job = (await http.get(f"/jobs/{job_id}")).json()
    assert [mark for mark in ALL_MARKS if mark in stored or mark in told] == []
    assert [event["event_type"] for event in events] == ["pipeline_completed"]
    assert job["outputs"] == {"output": 25}
