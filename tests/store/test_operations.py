"""Whether a store is fit, what it says of itself, and how long things live in it."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contracts.stores import NO_VIEW, finished_run, new_job, outcome
from tests.store_fixtures import wait_until

from pipeserve.errors import ConfigurationError
from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import JobQuery
from pipeserve.settings import StoreSettings
from pipeserve.store import DeploymentStore, Keys, Store, open_store
from pipeserve.store.address import masked
from pipeserve.store.connection import Script
from pipeserve.store.engine import arq_settings
from pipeserve.store.scripts.prelude import script
from pipeserve.store.valkey_process import find_server


@pytest.fixture
def unfit_server(short_dir: Path) -> Iterator[str]:
    """The URL of a server that is set up as a cache, with a password."""
    socket = short_dir / "cache.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--requirepass", "p@ss/word"]
    options += ["--maxmemory-policy", "allkeys-lru", "--maxmemory", "100mb", "--appendonly", "no"]
    with subprocess.Popen([find_server(), *options], stdout=subprocess.DEVNULL, cwd=short_dir) as server:
        deadline = time.monotonic() + 10
        while not socket.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"unix://:p%40ss%2Fword@{socket}"
        server.terminate()


async def test_a_cache_is_no_job_store_and_the_check_says_why(unfit_server: str) -> None:
    async with open_store(StoreSettings.from_environment(redis_url=unfit_server)) as store:
        deployment = store.deployment("d")
        findings = await deployment.operations.check()
        assert len(findings) == 2
        assert "maxmemory-policy is allkeys-lru" in findings[0]
        assert "appendonly is off" in findings[1]
        assert "p%40ss" not in str(deployment.operations.describe())
        await deployment.aclose()


async def test_a_process_that_starts_tells_its_log_what_is_wrong_with_the_store(
    unfit_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_store(StoreSettings.from_environment(redis_url=unfit_server)) as store:
        deployment = store.deployment("d")
        await deployment.operations.log_faults()
        await deployment.aclose()
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "not fit to keep jobs: maxmemory-policy is allkeys-lru" in caplog.records[0].getMessage()


async def test_a_store_that_is_away_when_a_process_starts_is_not_judged(
    short_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_store(StoreSettings.from_environment(redis_url=f"unix://{short_dir}/none.sock")) as store:
        deployment = store.deployment("d")
        await deployment.operations.log_faults()
        await deployment.aclose()
    assert caplog.records == []


async def test_the_embedded_store_is_fit(deployment_store: DeploymentStore) -> None:
    assert await deployment_store.operations.check() == []
    assert await deployment_store.operations.condition() == {"warnings": [], "emptied_at": None}


async def test_a_store_that_is_nearly_full_is_fit_and_warns(deployment_store: DeploymentStore) -> None:
    used = (await deployment_store.redis.info("memory"))["used_memory"]
    await deployment_store.redis.config_set("maxmemory", int(used / 0.9))
    try:
        assert await deployment_store.operations.check() == []
        assert "of its maxmemory" in str((await deployment_store.operations.condition())["warnings"])
        await deployment_store.redis.config_set("maxmemory", used * 2)
        assert (await deployment_store.operations.condition())["warnings"] == []
    finally:
        await deployment_store.redis.config_set("maxmemory", 0)


def test_urls_are_read_with_their_secrets_decoded_and_shown_without_them() -> None:
    settings = arq_settings("rediss://me:p%40ss@example.org:6380/3")
    assert (settings.host, settings.port, settings.database, settings.ssl) == ("example.org", 6380, 3, True)
    assert (settings.username, settings.password) == ("me", "p@ss")
    assert arq_settings("unix:///tmp/a.sock?db=2").unix_socket_path == "/tmp/a.sock"
    assert arq_settings("unix:///tmp/a.sock?db=2").database == 2
    assert masked("rediss://me:p%40ss@example.org:6380/3") == "rediss://me:***@example.org:6380/3"
    assert masked("redis://:secret@h") == "redis://:***@h"
    for wrong in ("http://h", "redis://h:port", "redis://h/x"):
        with pytest.raises(ConfigurationError):
            arq_settings(wrong)


async def test_lua_writes_dates_as_python_does(store: Store) -> None:
    from datetime import UTC, datetime

    from pipeserve.events import rfc3339

    show: Script = script("clock = {ARGV[4], '42'} return rfc3339()")
    moments = [
        datetime(year, month, day, 23, 59, 59, 42, UTC)
        for year in (1970, 1999, 2000, 2024, 2100)
        for month, day in ((1, 1), (2, 28), (3, 1), (12, 31))
    ]
    moments.append(datetime(2024, 2, 29, 0, 0, 0, 42, UTC))
    for moment in moments:
        shown: bytes = await store._connection.run(show, "p", 1, 1, 1, int(moment.timestamp()))
        assert shown.decode() == rfc3339(moment.timestamp())


async def test_a_finished_job_leaves_every_index_when_its_time_is_over(store_url: str) -> None:
    settings = StoreSettings.from_environment(redis_url=store_url, result_ttl=1)
    async with open_store(settings) as store, store.deployment("d") as deployment:
        live = new_job()  # so that the indexes themselves stay
        await deployment.ledger.submit(live)
        await deployment.ledger.record([finished_run(time.time(), labels={"a": "b"})])
        assert (await deployment.ledger.find(JobQuery(labels={"a": "b"}))).total == 1

        async def gone() -> bool:
            figures = await deployment.operations.figures()
            return figures.jobs_by_status["completed"] == 0

        await wait_until(gone, description="the record has expired")
        page = await deployment.ledger.find(JobQuery())
        assert ([job.job_id for job in page.jobs], page.total) == ([live.job_id], 1)
        assert (await deployment.ledger.find(JobQuery(labels={"a": "b"}))).total == 0
        assert (await deployment.operations.figures()).completed == 1


async def test_deployments_in_one_store_share_nothing(store: Store) -> None:
    async with store.deployment("one") as one, store.deployment("two") as two:
        job = new_job()
        await one.ledger.submit(job)
        assert await two.ledger.claim("owner", 5) == []
        assert await two.ledger.get(job.job_id) is None
        assert one.queue_name == Keys("one").queue == "pipeserve:{one}:queue"


async def test_a_claim_costs_one_round_trip_however_many_jobs_it_takes(deployment_store: DeploymentStore) -> None:
    for _ in range(20):
        await deployment_store.ledger.submit(new_job())

    async def commands() -> int:
        stats = await deployment_store.redis.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))

    [first] = await deployment_store.ledger.claim("owner", 1)
    # A script's first use sends it twice: by its hash, and then whole.
    assert await deployment_store.ledger.finish(first.job_id, 1, [], NO_VIEW, outcome(first.job_id))
    before = await commands()
    claims = await deployment_store.ledger.claim("owner", 19)
    assert len(claims) == 19
    assert await commands() - before == 1
    finished = [deployment_store.ledger.finish(claim.job_id, 1, [], NO_VIEW, outcome(claim.job_id)) for claim in claims]
    assert all(await asyncio.gather(*finished))
    assert await commands() - before == 20
    figures = await deployment_store.operations.figures()
    assert figures.jobs_by_status[JobStatus.COMPLETED] == 20
