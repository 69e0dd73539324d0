from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
from tests.cli.conftest import wait_until

from pipeserve.cli.children import Child, StartError, descendants_of
from pipeserve.cli.port import free_port
from pipeserve.errors import ConfigurationError

pytestmark = pytest.mark.e2e


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


async def test_a_child_that_ends_at_its_start_is_an_error_that_names_it() -> None:
    child = Child("the API", python("raise SystemExit(3)"), os.environ)
    with pytest.raises(StartError, match=r"the API ended at its start \(exit code 3\)"):
        await child.run()


async def test_a_proven_child_that_dies_is_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pids = tmp_path / "pids"
    code = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(60)"
    child = Child("the API", python(code, str(pids)), os.environ)
    child.proven = True
    running = asyncio.create_task(child.run())
    await wait_until(lambda: pids.exists() and pids.read_text().count("\n") == 1, "the child has started")
    os.kill(int(pids.read_text()), signal.SIGKILL)
    await wait_until(lambda: pids.read_text().count("\n") == 2, "it has started again")
    child.end()
    await running
    assert "the API ended (by SIGKILL); starting it again in 0.5 s" in capsys.readouterr().err


async def test_killing_a_child_takes_along_what_it_has_started() -> None:
    grandchild = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}], start_new_session=True)"
    child = Child("the workers", python(code), os.environ)
    before = set(mine())  # another test's store, say
    running = asyncio.create_task(child.run())
    await wait_until(lambda: len(set(mine()) - before) == 2, "child and grandchild run")
    processes = sorted(set(mine()) - before, key=lambda process: process.ppid() != os.getpid())
    assert len(descendants_of(processes[0].pid)) == 1
    child.kill()
    await running
    await wait_until(lambda: not any(process.is_running() for process in processes), "none of them runs")


def mine() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


async def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent has died")
    code = """
import asyncio, os, sys
from pipeserve.cli.children import Child
command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
asyncio.run(Child("x", command, os.environ).run())
"""
    parent = await asyncio.create_subprocess_exec(*python(code), stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"up\n"
    [child] = psutil.Process(parent.pid).children()
    parent.kill()
    await parent.wait()
    await wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child has ended")


def test_a_port_that_is_taken_names_the_process_that_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        who = f"process {os.getpid()} has it" if sys.platform == "linux" else "in use"
        with pytest.raises(ConfigurationError, match=f"can't listen on 127.0.0.1:{port}: {who}.*--port"):
            free_port("127.0.0.1", port)


def test_port_0_is_a_port_that_is_free() -> None:
    port = free_port("127.0.0.1", 0)
    assert port > 0
    assert free_port("127.0.0.1", port) == port


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"can't listen on 203\.0\.113\.1:8001: Cannot assign"):
        free_port("203.0.113.1", 8001)
