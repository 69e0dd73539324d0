"""Limits of callers: over all replicas together, told with each answer, and never a reason to fail."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.api.harness import Served, bearer, serving, wait_until
from tests.api.pipelines import shout
from websockets.asyncio.client import connect

from pipeserve.errors import StoreUnavailableError
from pipeserve.key_file import KeyScope, stanza
from pipeserve.runtime.memory import MemoryStore
from pipeserve.store import DeploymentStore

MINE = (KeyScope.INVOKE, KeyScope.READ, KeyScope.CANCEL)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(
        stanza("few", "few", MINE)
        + "requests_per_minute = 5\n"
        + stanza("runs", "runs", MINE)
        + "runs_per_day = 3\n"
        + stanza("free", "free", MINE)
    )
    return path


@pytest.fixture
async def served(keys: Path) -> AsyncIterator[Served]:
    async with serving(shout, service={"keys_file": keys}) as service:
        yield service


async def test_requests_beyond_the_budget_are_told_when_to_come_back(served: Served) -> None:
    left: list[int] = []
    for _ in range(5):
        answer = await served.http.get("/jobs", headers=bearer("few"))
        assert answer.status_code == 200
        assert answer.headers["ratelimit-policy"] == '"requests";q=5;w=60'
        told = re.fullmatch(r'"requests";r=(\d+);t=(\d+)', answer.headers["ratelimit"])
        assert told
        left.append(int(told[1]))
        assert 0 < int(told[2]) <= 60
    assert left == [4, 3, 2, 1, 0]
    refused = await served.http.get("/jobs", headers=bearer("few"))
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert 0 < int(refused.headers["retry-after"]) <= 12
    assert refused.headers["ratelimit"].startswith('"requests";r=0;')
    assert (await served.http.get("/health", headers=bearer("few"))).status_code == 200
    free = await served.http.get("/jobs", headers=bearer("free"))
    assert free.status_code == 200
    assert "ratelimit" not in free.headers


async def test_only_runs_that_start_are_counted(served: Served) -> None:
    async def invoke(**options: Any) -> int:
        return (await served.invoke(headers=bearer("runs") | options.pop("extra", {}), **options)).status_code

    assert await invoke(parameters={"text": 1}) == 422
    once = {"Idempotency-Key": "once"}
    assert await invoke(parameters={"text": "a"}, mode="async", extra=once) == 202
    for _ in range(3):
        assert await invoke(parameters={"text": "a"}, mode="async", extra=once) == 202
    assert await invoke(parameters={"text": "a"}) == 200
    items = {"items": [{"parameters": {"text": "a"}}] * 2}
    batch = await served.http.post("/invoke/batch", json=items, headers=bearer("runs"))
    assert (batch.status_code, batch.json()["code"]) == (429, "rate_limited"), "two where one is left"
    assert await invoke(parameters={"text": "a"}) == 200
    refused = await served.invoke({"text": "a"}, headers=bearer("runs"))
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert int(refused.headers["retry-after"]) > 3600

    async def recorded() -> bool:
        return (await served.http.get("/jobs", headers=bearer("runs"))).json()["total"] == 3

    await wait_until(recorded, "the three are recorded")


async def test_a_socket_is_told_and_stays_open(served: Served) -> None:
    async with connect(served.url.replace("http", "ws") + "/stream", additional_headers=bearer("runs")) as socket:
        codes: list[str | None] = []
        for number in range(4):
            await socket.send(
                orjson.dumps(
                    {"op": "invoke", "ref": str(number), "parameters": {"text": "a"}, "mode": "async"}
                ).decode()
            )
            while True:
                frame = orjson.loads(await asyncio.wait_for(socket.recv(), 5))
                if frame.get("ref") == str(number):
                    break
            codes.append(frame.get("problem", {}).get("code"))
        assert codes == [None, None, None, "rate_limited"]
        await socket.send('{"op": "ping", "ref": "p"}')
        while orjson.loads(await asyncio.wait_for(socket.recv(), 5))["op"] != "pong":
            pass


async def test_replicas_share_a_budget(deployment_store: DeploymentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeserve_api.limits.PATIENCE", 10)  # this machine may be busy, and no test is about that here
    backend: Any = deployment_store
    limit = {"requests_per_minute": 20}
    async with (
        serving(shout, backend=backend, service=limit) as one,
        serving(shout, backend=backend, service=limit) as other,
    ):
        calls = [served.http.get("/info") for served in (one, other) for _ in range(30)]
        codes = [answer.status_code for answer in await asyncio.gather(*calls)]
    assert (codes.count(200), codes.count(429)) == (20, 40)


async def test_readers_of_one_link_use_up_nobody_elses_budget() -> None:
    async with serving(shout, service={"auth_key": "k", "requests_per_minute": 10}) as served:
        tokens: list[tuple[str, str]] = []
        for _ in range(2):
            job_id = await served.submit({"text": "a"}, headers=bearer("k"))
            answer = await served.http.post(f"/jobs/{job_id}/token", headers=bearer("k"))
            tokens.append((job_id, answer.json()["token"]))

        async def read(job_id: str, token: str) -> int:
            return (await served.http.get(f"/jobs/{job_id}", params={"token": token})).status_code

        assert [await read(*tokens[0]) for _ in range(11)] == [200] * 10 + [429]
        assert await read(*tokens[1]) == 200
        assert (await served.http.get("/jobs", headers=bearer("k"))).status_code == 200


@pytest.mark.parametrize("away", ["gone", "frozen"])
async def test_without_the_store_each_process_counts_for_itself(
    away: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store: Any = MemoryStore()

    async def spend(*_: object) -> None:
        if away == "gone":
            raise StoreUnavailableError
        await asyncio.Event().wait()

    monkeypatch.setattr(store.limits, "spend", spend)
    async with serving(shout, backend=store, service={"requests_per_minute": 3}) as served:
        codes = [(await served.http.get("/info")).status_code for _ in range(5)]
    assert codes == [200, 200, 200, 429, 429]
    assert caplog.text.count("each process counts its own") == 1
