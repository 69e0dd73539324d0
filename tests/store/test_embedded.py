"""The embedded Valkey: who starts it, who uses it, and what becomes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.contracts.stores import new_job
from tests.store_fixtures import wait_until

from pipeserve.settings import StoreSettings
from pipeserve.store import open_store
from pipeserve.store.connection import Connection, connect
from pipeserve.store.embedded import EmbeddedStore, socket_path, start_embedded

pytestmark = pytest.mark.e2e


async def ask(url: str, *command: Any) -> Any:
    """One command on a connection of its own."""
    connection = Connection(url, connect(url, queue_name="q", pool_size=1))
    try:
        return await connection.call(*command)
    finally:
        await connection.aclose()


async def server_pid(url: str) -> int:
    return int((await ask(url, "INFO", "server"))["process_id"])


async def test_it_is_durable_private_and_throws_nothing_away(short_dir: Path) -> None:
    async with start_embedded(short_dir) as url:
        assert await ask(url, "CONFIG GET", "appendonly") == {"appendonly": "yes"}
        assert await ask(url, "CONFIG GET", "appendfsync") == {"appendfsync": "everysec"}
        assert await ask(url, "CONFIG GET", "maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert await ask(url, "CONFIG GET", "port") == {"port": "0"}
        assert stat.S_IMODE((short_dir / "store").stat().st_mode) == 0o700
        assert stat.S_IMODE((short_dir / "store" / "valkey.sock").stat().st_mode) == 0o700
        assert os.getsid(await server_pid(url)) != os.getsid(0)


async def test_where_jobs_must_be_on_disk_it_writes_before_each_answer(short_dir: Path) -> None:
    settings = StoreSettings.from_environment(data_dir=short_dir, durability="strict")
    async with open_store(settings) as store, store.deployment("d") as deployment:
        assert await ask(store.url, "CONFIG GET", "appendfsync") == {"appendfsync": "always"}
        await deployment.ledger.submit(new_job())
        assert "cmdstat_waitaof" in await ask(store.url, "INFO", "commandstats")


async def test_it_stops_with_its_context_and_its_data_is_there_the_next_time(short_dir: Path) -> None:
    settings = StoreSettings.from_environment(data_dir=short_dir)
    job = new_job()
    async with open_store(settings) as store, store.deployment("d") as deployment:
        await deployment.ledger.submit(job)
        pid = await server_pid(store.url)
        assert deployment.operations.describe() == {"kind": "embedded", "url": store.url}
    assert not psutil.pid_exists(pid)
    async with open_store(settings) as store, store.deployment("d") as deployment:
        assert [claim.job_id for claim in await deployment.ledger.claim("owner", 5)] == [job.job_id]


async def test_a_second_one_uses_the_first_ones_server_and_takes_over_when_it_goes(short_dir: Path) -> None:
    first = EmbeddedStore(short_dir)
    await first.open()
    try:
        async with start_embedded(short_dir) as url:
            assert url == first.url
            old = await server_pid(url)
            await ask(url, "SET", "kept", "yes")
            await first.close()

            async def taken_over() -> bool:
                try:
                    return await server_pid(url) != old
                except Exception:  # between the two servers
                    return False

            await wait_until(taken_over, description="the second process runs the server")
            assert await ask(url, "GET", "kept") == b"yes"
    finally:
        await first.close()


async def test_a_server_that_is_killed_is_started_again_with_its_data(short_dir: Path) -> None:
    async with start_embedded(short_dir) as url:
        await ask(url, "SET", "kept", "yes")
        os.kill(await server_pid(url), signal.SIGKILL)

        async def back() -> bool:
            try:
                return await ask(url, "GET", "kept") == b"yes"
            except Exception:  # not yet
                return False

        await wait_until(back, description="the server is back with its data")


PARENT = """
import asyncio, sys
from pathlib import Path
from pipeserve.store.embedded import start_embedded

async def main():
    async with start_embedded(Path(sys.argv[1])):
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child that its parent died")
async def test_a_parent_killed_with_9_leaves_no_server_behind(short_dir: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(short_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert await asyncio.to_thread(parent.stdout.readline) == b"ready\n"
        pid = await server_pid(EmbeddedStore(short_dir).url)
        parent.kill()
    await wait_until(lambda: not psutil.pid_exists(pid), description="the server has died with its parent")


async def test_a_path_too_long_for_a_socket_moves_the_socket_not_the_data(short_dir: Path) -> None:
    deep = short_dir / ("a" * 60) / ("b" * 60)
    socket = socket_path(deep / "store")
    assert len(str(socket)) < 100
    assert socket != socket_path(short_dir / "store")
    async with start_embedded(deep) as url:
        await ask(url, "SET", "kept", "yes")
    assert (deep / "store" / "appendonlydir").is_dir()
    assert not socket.exists()
