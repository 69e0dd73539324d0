"""The supervisor alone: children here are tiny programs, and the ledger only notes what is given back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import psutil
import pytest
from tests.worker.harness import eventually

from pipeserve.errors import StoreUnavailableError
from pipeserve.process_log import get_log
from pipeserve.runtime.ports import JobLedger
from pipeserve_worker.drain import StopSignals
from pipeserve_worker.supervisor import CannotServeError, Supervisor

# Each child writes its pid, then lives as its test says. Arguments as the supervisor passes them:
# --child NONCE --parent-pid PID --report-fd FD.
PREAMBLE = """
import os, signal, sys, time
nonce, parent, report = sys.argv[2], int(sys.argv[4]), int(sys.argv[6])
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # or sigwait would never see it
open(os.environ["PIDS"], "a").write(f"{os.getpid()} {nonce}\\n")
"""
LIVES = PREAMBLE + "signal.sigwait({signal.SIGTERM})\n"
DIES_ONCE = (
    PREAMBLE + "if len(open(os.environ['PIDS']).readlines()) < 2: os._exit(9)\nsignal.sigwait({signal.SIGTERM})\n"
)
REFUSES = PREAMBLE + "os.write(report, b'no such code'); sys.exit(2)\n"
STEP_LEAVES_WITH_2 = DIES_ONCE.replace("os._exit(9)", "os._exit(2)")
WAITS_FOR_TWO = PREAMBLE + "signal.sigwait({signal.SIGTERM}); signal.sigwait({signal.SIGINT})\n"


class Released:
    """A ledger as far as a supervisor knows it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool]] = []
        self.away = 0

    async def release(self, owner: str, *, lost: bool) -> int:
        if self.away:
            self.away -= 1
            raise StoreUnavailableError("away")
        self.calls.append((owner, lost))
        return 1


class Supervised:
    """A supervisor that runs, and what its children left."""

    def __init__(self, pids: Path, ledger: Released, stop: StopSignals, task: asyncio.Task[None]) -> None:
        self._pids = pids
        self.ledger = ledger
        self.stop = stop
        self.task = task

    @property
    def children(self) -> list[tuple[int, str]]:
        lines = self._pids.read_text().splitlines() if self._pids.exists() else []
        return [(int(pid), nonce) for pid, nonce in (line.split() for line in lines)]


@contextlib.asynccontextmanager
async def supervised(
    folder: Path, program: str, *, processes: int = 1, ledger: Released | None = None, python: str = sys.executable
) -> AsyncIterator[Supervised]:
    ledger = ledger or Released()
    stop = StopSignals()
    supervisor = Supervisor(
        command=(python, "-c", program),
        environment=os.environ | {"PIDS": str(folder / "pids")},
        ledger=cast(JobLedger, ledger),
        processes=processes,
        drain_seconds=30,
        stop=stop,
        log=get_log("pipeserve_worker"),
    )
    task = asyncio.create_task(supervisor.run())
    try:
        yield Supervised(folder / "pids", ledger, stop, task)
    finally:
        stop.signal()
        stop.signal()
        with contextlib.suppress(CannotServeError):
            await task


async def test_a_child_that_died_is_replaced_and_its_jobs_go_back_as_lost(tmp_path: Path):
    async with supervised(tmp_path, DIES_ONCE) as running:
        await eventually(lambda: len(running.children) == 2, "a second child")
        (first_pid, first_nonce), _ = running.children
        [(owner, lost)] = running.ledger.calls
        assert owner.endswith(f":{first_pid}:{first_nonce}")
        assert lost


async def test_the_jobs_go_back_as_soon_as_the_store_is_there(tmp_path: Path):
    ledger = Released()
    ledger.away = 3
    async with supervised(tmp_path, DIES_ONCE, ledger=ledger) as running:
        await eventually(lambda: running.ledger.calls, "the release, tried again")


async def test_a_stop_reaches_every_child_and_loses_nothing(tmp_path: Path):
    async with supervised(tmp_path, LIVES, processes=2) as running:
        await eventually(lambda: len(running.children) == 2, "two children")
        running.stop.signal()
        await running.task
        assert [lost for _, lost in running.ledger.calls] == [False, False]
        assert not any(psutil.pid_exists(pid) for pid, _ in running.children)


async def test_a_second_signal_reaches_the_children_too(tmp_path: Path):
    async with supervised(tmp_path, WAITS_FOR_TWO) as running:
        await eventually(lambda: running.children, "a child")
        running.stop.signal()
        running.stop.signal()
        await running.task


async def test_a_child_that_cannot_serve_ends_all_with_its_words(tmp_path: Path):
    async with supervised(tmp_path, REFUSES, processes=2) as running:
        with pytest.raises(CannotServeError, match="no such code"):
            await running.task
        assert len(running.children) <= 2, "none was started again"


async def test_a_step_that_leaves_with_that_code_is_only_a_dead_child(tmp_path: Path):
    async with supervised(tmp_path, STEP_LEAVES_WITH_2) as running:
        await eventually(lambda: len(running.children) == 2, "a second child")
        assert not running.task.done()


async def test_a_child_that_cannot_even_be_started_is_tried_again(tmp_path: Path):
    python = tmp_path / "python"
    async with supervised(tmp_path, LIVES, python=str(python)) as running:
        python.symlink_to(sys.executable)
        await eventually(lambda: running.children, "a child, once it can be started")
