"""The supervisor alone: children here are tiny programs, and the ledger only notes what is given back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, cast

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
import json, os, signal, sys, time
nonce, parent, report = sys.argv[2], int(sys.argv[4]), int(sys.argv[6])
asked = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, asked)  # or sigwait would never see it
def say(word, text=""): os.write(report, f"{word} {json.dumps(text)}\\n".encode())
def note(name): open(os.environ["NOTES"] + "/" + name, "a").write(f"{os.getpid()} {nonce}\\n")
def count(name): return len(open(os.environ["NOTES"] + "/" + name).readlines())
note("pids")
first = count("pids") == 1
"""
SERVES = "say('ready'); signal.sigwait({signal.SIGTERM}); say('drained')\n"
LIVES = PREAMBLE + SERVES


def first_child(fate: str) -> str:
    """The first child meets this fate; the others serve."""
    return PREAMBLE + f"if first:\n  {fate}\n" + SERVES


DIES_ONCE = first_child("os._exit(9)")
REFUSES = PREAMBLE + "say('refuse', 'no such code'); sys.exit(2)\n"
STEP_LEAVES_WITH_2 = first_child("say('ready'); os._exit(2)")
STEP_LEAVES_WITH_0 = first_child("say('ready'); os._exit(0)")
WAITS_FOR_TWO = PREAMBLE + "say('ready'); signal.sigwait({signal.SIGTERM}); signal.sigwait({signal.SIGINT})\n"
HOLDS_ITS_REPORT = first_child("os.fork() or (note('grandchild'), time.sleep(30)); os._exit(9)")
BREAKS = PREAMBLE + "say('broken', 'Traceback\\nValueError: no model ' + nonce); sys.exit(1)\n"
# Retires as soon as it serves, then lingers over its last job until the file "go" is there.
RETIRES = """
say('ready'); say('retire', 'enough')
if signal.sigwait(asked) == signal.SIGUSR1:
    note('relieved')
    while not os.path.exists(os.environ['NOTES'] + '/go'):
        if signal.sigtimedwait({signal.SIGTERM}, 0.01): break
say('drained'); sys.exit(0)
"""
RETIRES_ONCE = PREAMBLE + "if first:\n" + "\n".join(f"  {line}" for line in RETIRES.splitlines()) + "\n" + SERVES
ALL_RETIRE = PREAMBLE + "note('begun'); time.sleep(0.05); note('ready')\n" + RETIRES


class Released:
    """A ledger as far as a supervisor knows it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool]] = []
        self.away = 0
        self.silent = 0

    async def release(self, owner: str, *, lost: bool) -> int:
        if self.silent:
            self.silent -= 1
            await asyncio.Event().wait()
        if self.away:
            self.away -= 1
            raise StoreUnavailableError("away")
        self.calls.append((owner, lost))
        return 1


class Supervised:
    """A supervisor that runs, and what its children left."""

    def __init__(self, notes: Path, ledger: Released, stop: StopSignals, task: asyncio.Task[None]) -> None:
        self._notes = notes
        self.ledger = ledger
        self.stop = stop
        self.task = task

    @property
    def children(self) -> list[tuple[int, str]]:
        """Process id and nonce of each child that was started, in order."""
        return self.noted("pids")

    def noted(self, name: str) -> list[tuple[int, str]]:
        """The children that made this note."""
        path = self._notes / name
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(pid), nonce) for pid, nonce in (line.split() for line in lines)]

    @property
    def alive(self) -> set[int]:
        """Children that live."""
        return {pid for pid, _ in self.children if psutil.pid_exists(pid)}


@contextlib.asynccontextmanager
async def supervised(
    folder: Path,
    program: str,
    *,
    processes: int = 1,
    ledger: Any = None,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Supervised]:
    ledger = ledger or Released()
    stop = StopSignals()
    supervisor = Supervisor(
        command=(python, "-c", program),
        environment=os.environ | {"NOTES": str(folder)} | dict(environment or {}),
        ledger=cast(JobLedger, ledger),
        processes=processes,
        drain_seconds=30,
        stop=stop,
        log=get_log("pipeserve_worker"),
        **options,
    )
    task = asyncio.create_task(supervisor.run())
    try:
        yield Supervised(folder, ledger, stop, task)
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


async def test_a_connection_that_gives_no_answer_does_not_hold_the_jobs_up(tmp_path: Path):
    ledger = Released()
    ledger.silent = 1
    async with supervised(tmp_path, DIES_ONCE, ledger=ledger) as running:
        await eventually(lambda: running.ledger.calls, "the release, on another connection")


async def test_a_grandchild_that_outlives_a_dead_child_does_not_hold_its_jobs_up(tmp_path: Path):
    async with supervised(tmp_path, HOLDS_ITS_REPORT) as running:
        await eventually(lambda: running.noted("grandchild"), "a grandchild")
        [(grandchild, _)] = running.noted("grandchild")
        await eventually(lambda: len(running.children) == 2, "a second child")
        assert running.ledger.calls
        assert psutil.pid_exists(grandchild), "which still holds the pipe"
        psutil.Process(grandchild).kill()


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


async def test_a_step_that_leaves_without_an_error_is_a_death_that_counts(tmp_path: Path):
    async with supervised(tmp_path, STEP_LEAVES_WITH_0) as running:
        await eventually(lambda: running.ledger.calls, "a release")
        assert [lost for _, lost in running.ledger.calls] == [True]
        await eventually(lambda: len(running.children) == 2, "a second child")


async def test_a_child_that_has_done_enough_leaves_when_another_is_ready(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with supervised(tmp_path, RETIRES_ONCE) as running:
        await eventually(lambda: running.noted("relieved"), "it is relieved")
        assert len(running.children) == 2, "another was started first"
        assert len(running.alive) == 2, "it goes on with what it has"
        (tmp_path / "go").touch()
        await eventually(lambda: len(running.alive) == 1, "it ends")
        await eventually(lambda: running.ledger.calls, "its releases")
        assert [lost for _, lost in running.ledger.calls] == [False]
    assert "died" not in caplog.text
    assert len(running.children) == 2


async def test_a_stop_reaches_a_child_that_lingers(tmp_path: Path):
    async with supervised(tmp_path, RETIRES_ONCE) as running:
        await eventually(lambda: running.noted("relieved"), "it is relieved")
        running.stop.signal()
        await running.task
        assert not running.alive


async def test_children_are_replaced_one_at_a_time(tmp_path: Path):
    (tmp_path / "go").touch()
    async with supervised(tmp_path, ALL_RETIRE, processes=3) as running:
        await eventually(lambda: len(running.noted("begun")) >= 10, "some generations")
    events = [len(running.noted("begun")), len(running.noted("ready"))]
    assert events[0] - events[1] <= 1
    # The order in which children began and were ready: after the first three, each is ready before the next begins.
    begun, ready = ([nonce for _, nonce in running.noted(name)] for name in ("begun", "ready"))
    assert begun[3 : len(ready)] == ready[3:]


async def test_no_more_children_linger_than_there_are_slots(tmp_path: Path):
    async with supervised(tmp_path, ALL_RETIRE, processes=2) as running:
        await eventually(lambda: len(running.noted("relieved")) == 2, "two are relieved")
        await eventually(lambda: len(running.noted("ready")) == 4, "their successors are there")
        assert len(running.alive) == 4
        (tmp_path / "go").touch()
        await eventually(lambda: len(running.children) > 4, "then others follow")


async def test_a_child_that_breaks_at_its_start_is_told_in_full_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with supervised(tmp_path, BREAKS, processes=4) as running:
        await eventually(lambda: caplog.text.count("could not start") >= 8, "eight failures are told")
        told = [record for record in caplog.records if "could not start" in record.getMessage()]
        assert [hasattr(record, "exception") for record in told] == [True] + [False] * (len(told) - 1)
        assert all("ValueError: no model" in record.__dict__["reason"] for record in told)
        assert not running.task.done()


async def test_a_slot_whose_child_cannot_start_does_not_hold_the_others_up(tmp_path: Path):
    async with supervised(tmp_path, first_child("sys.exit(1)"), processes=2) as running:
        await eventually(lambda: len(running.alive) == 2, "both slots have a child in the end")
