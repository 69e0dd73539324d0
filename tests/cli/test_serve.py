"""``pipeserve serve`` as processes: what it prints, what it survives, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import orjson
import psutil
import pytest
from tests.cli.conftest import SAMPLE, Pipeserve, wait_until

from pipeserve.client import AsyncClient
from pipeserve.errors import DrainingError

pytestmark = pytest.mark.e2e

GREET = f"{SAMPLE}:greet"
SLOW = f"{SAMPLE}:slow"
SLEEPING = f"{SAMPLE}:sleeping"
Serve = Callable[..., Any]


async def test_the_three_curl_lines_of_the_banner_work(serving: Serve) -> None:
    async with serving(GREET, "--workers", "2") as service:
        at_once, as_job, events = [
            await shell(line) for line in re.findall(r"^  (curl .*)$", service.said, re.MULTILINE)
        ]
        answer = orjson.loads(at_once)
        assert answer["success"] is True
        assert answer["outputs"]["output"][0].startswith("Hello, ")
        job_id = orjson.loads(as_job)["job_id"]
        assert events.count("event: pipeline_completed") == 1
        async with AsyncClient(service.url) as client:
            assert (await client.job(job_id).result()).outputs == answer["outputs"]
        workers = [process for process in service.look_around() if "pipeserve_worker" in " ".join(process.cmdline())]
        assert len(workers) == 3  # their supervisor, and two


async def test_ctrl_c_ends_everything_with_a_job_under_way_within_3_seconds(serving: Serve) -> None:
    async with serving(SLOW, "--workers", "2") as service:
        service.look_around()
        async with AsyncClient(service.url) as client:
            job = await client.submit(seconds=30)
            async for event in job.events():
                if event.event_type == "step_started":
                    break
        began = time.monotonic()
        service.process.send_signal(signal.SIGINT)
        assert await service.process.wait() == 0, service.said
        assert time.monotonic() - began < 3, service.said
        assert service.left() == []


@pytest.mark.parametrize("target", [SLEEPING, SLOW])
async def test_ctrl_c_answers_a_call_under_way_that_the_service_drains(serving: Serve, target: str) -> None:
    async with serving(target, "--workers", "1") as service, AsyncClient(service.url) as client:
        service.look_around()
        call = asyncio.create_task(client.invoke(seconds=8))
        await wait_until(lambda: httpx.get(f"{service.url}/metrics").json()["active_runs"] == 1, "the call runs")
        began = time.monotonic()
        service.process.send_signal(signal.SIGINT)
        with pytest.raises(DrainingError) as caught:
            await call
        assert caught.value.retry_after is not None
        assert await service.process.wait() == 0, service.said
        assert time.monotonic() - began < 3, service.said
        assert "killing" not in service.said
        assert service.left() == []


async def test_a_job_cut_short_by_ctrl_c_goes_on_with_the_next_start(serving: Serve) -> None:
    async with serving(SLOW, "--workers", "1") as service, AsyncClient(service.url) as client:
        job = await client.submit(seconds=2)
        async for event in job.events():
            if event.event_type == "step_started":
                break
    async with serving(SLOW, "--workers", "1") as service, AsyncClient(service.url) as client:
        assert (await client.job(job.job_id).result()).outputs == {"output": 100}


async def test_the_second_ctrl_c_ends_it_at_once(serving: Serve) -> None:
    async with serving(SLOW, "--workers", "1", env={"PIPESERVE_DRAIN_SECONDS": "60"}) as service:
        service.look_around()
        async with AsyncClient(service.url) as client:
            job = await client.submit(seconds=50)
            async for event in job.events():
                if event.event_type == "step_started":
                    break
        service.process.send_signal(signal.SIGINT)
        await wait_until(lambda: "draining" in service.said or "drain" in service.said, "the workers drain")
        service.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(5):
            assert await service.process.wait() == 0
        await wait_until(lambda: service.left() == [], "nothing is left", seconds=5)


async def test_kill_9_leaves_nothing_running(serving: Serve) -> None:
    async with serving(GREET, "--workers", "2") as service:
        service.look_around()
        service.process.kill()
        await service.process.wait()
        await wait_until(lambda: service.left() == [], f"nothing is left of {service.tree}", seconds=20)


@pytest.mark.parametrize("part", ["pipeserve_api", "pipeserve_worker"])
async def test_a_part_that_is_killed_comes_back(serving: Serve, part: str) -> None:
    async with serving(GREET, "--workers", "1") as service:
        [process] = [
            child for child in psutil.Process(service.process.pid).children() if part in " ".join(child.cmdline())
        ]
        process.kill()
        await wait_until(lambda: "(by SIGKILL); starting it again" in service.said, "serve says so")
        async with AsyncClient(service.url) as client:
            await wait_until_async(client, name="Ada")
            assert (await (await client.submit(name="Ada")).result()).outputs == {"output": ["Hello, Ada!"]}


async def test_a_port_that_is_taken_is_told_before_anything_starts(pipeserve: Pipeserve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        done = await pipeserve("serve", GREET, "--port", port)
    assert done.code == 2
    assert f"can't listen on 127.0.0.1:{port}" in done.err


async def test_a_pipeline_whose_on_init_fails_ends_serve_with_the_reason(pipeserve: Pipeserve, tmp_path: Any) -> None:
    (tmp_path / "broken.py").write_text(
        "from pipeserve import pipeline, step\n"
        "def load():\n    raise RuntimeError('the model is not here')\n"
        "@step\ndef one() -> int:\n    return 1\n"
        "@pipeline(on_init=load)\ndef broken() -> int:\n    return one()\n"
    )
    done = await pipeserve("serve", "broken.py:broken", "--port", "0")
    assert done.code == 1
    assert "the model is not here" in done.err
    assert "ended at its start" in done.err


async def shell(line: str) -> str:
    process = await asyncio.create_subprocess_shell(line, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def wait_until_async(client: AsyncClient, **parameters: Any) -> None:
    from pipeserve.client import UnreachableError

    async with asyncio.timeout(30):
        while True:
            try:
                await client.invoke(**parameters)
            except UnreachableError:
                await asyncio.sleep(0.05)
            else:
                return
