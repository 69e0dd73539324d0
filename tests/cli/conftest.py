"""Runs the command as people do: as a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

SAMPLE = Path(__file__).with_name("sample.py")
COMMAND = (sys.executable, "-c", "from pipeserve.cli.main import run; run()")


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.out)


def environment(data_dir: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without what configures pipeserve, and with a store of the test's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIPESERVE_", "ZENML_"))}
    return {**kept, "PIPESERVE_DATA_DIR": str(data_dir), "COLUMNS": "200", **(extra or {})}


Pipeserve = Callable[..., Awaitable[Finished]]


@pytest.fixture
def pipeserve(tmp_path: Path) -> Pipeserve:
    """``await pipeserve("deploy", target, env={…})`` runs the command to its end."""

    async def run(*arguments: str, env: Mapping[str, str] | None = None) -> Finished:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *arguments,
            cwd=tmp_path,
            env=environment(tmp_path / "data", env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return Finished(process.returncode or 0, out.decode(), err.decode())

    return run


class Serving:
    """A running ``pipeserve serve``."""

    def __init__(self, process: asyncio.subprocess.Process, said: Path) -> None:
        self.process = process
        self._said = said
        self.tree: list[psutil.Process] = []

    @property
    def said(self) -> str:
        return self._said.read_text()

    @property
    def url(self) -> str:
        found = re.search(r"^Serving \S+ at (\S+)$", self.said, re.MULTILINE)
        assert found is not None
        return found[1]

    def look_around(self) -> list[psutil.Process]:
        """All processes that belong to it now."""
        me = psutil.Process(self.process.pid)
        self.tree = [me, *me.children(recursive=True)]
        return self.tree

    def left(self) -> list[str]:
        """What still runs of the processes that :meth:`look_around` found."""
        found: list[str] = []
        for process in self.tree:
            with suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
        return found


@pytest.fixture
def serving(tmp_path: Path) -> Callable[..., Any]:
    """``async with serving("sample.py:greet", …) as service`` runs ``pipeserve serve`` until the block ends."""

    @asynccontextmanager
    async def serve(
        *arguments: str, env: Mapping[str, str] | None = None, ready: str = "Ctrl-C ends it."
    ) -> AsyncIterator[Serving]:
        said = tmp_path / "said"
        with said.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                *(*COMMAND, "serve", *arguments, "--port", "0"),
                cwd=tmp_path,
                env=environment(tmp_path / "data", env),
                stdout=out,
                stderr=asyncio.subprocess.STDOUT,
            )
        service = Serving(process, said)
        try:
            await wait_until(lambda: ready in service.said or process.returncode is not None, "the service is ready")
            assert process.returncode is None, service.said
            yield service
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()

    return serve


async def wait_until(condition: Callable[[], bool], description: str, *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{description}: not within {seconds} s"
        await asyncio.sleep(0.02)
