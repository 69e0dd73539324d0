"""When a worker process asks for a successor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from tests.worker.harness import eventually

from pipeserve.process_log import get_log
from pipeserve_worker.resident_memory import resident_bytes
from pipeserve_worker.retirement import Retirement

LOG = get_log("pipeserve_worker")
MIB = 1024 * 1024


def test_without_bounds_it_never_ends():
    retirement = Retirement(None, None, LOG)
    retirement.took(10**9)
    assert retirement.allows(10) == 10
    assert not retirement.due.is_set()


def test_it_never_takes_more_jobs_than_it_may():
    retirement = Retirement(5, None, LOG)
    retirement.took(3)
    assert retirement.allows(10) == 2
    retirement.took(2)
    assert retirement.allows(10) == 0


def test_it_asks_for_a_successor_before_its_last_jobs():
    asked_at: set[int] = set()
    for _ in range(200):
        retirement = Retirement(100, None, LOG)
        while not retirement.due.is_set():
            retirement.took(1)
        asked_at.add(100 - retirement.allows(100))
    assert min(asked_at) >= 80
    assert max(asked_at) <= 90
    assert len(asked_at) > 3, "not all at the same job"


def test_one_that_may_take_one_job_only_asks_when_it_has_it():
    retirement = Retirement(1, None, LOG)
    assert not retirement.due.is_set()
    retirement.took(1)
    assert retirement.due.is_set()
    assert "1 jobs" in retirement.reason


@contextlib.asynccontextmanager
async def watched(max_rss: int, rss: Callable[[], int | None]) -> AsyncIterator[Retirement]:
    retirement = Retirement(None, max_rss, LOG, rss=rss, look_seconds=0.001)
    task = asyncio.create_task(retirement.watch())
    try:
        yield retirement
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_it_asks_when_its_memory_is_above_the_bound():
    sizes = iter([100 * MIB, 100 * MIB, 300 * MIB])
    async with watched(200 * MIB, lambda: next(sizes, 300 * MIB)) as retirement:
        retirement.took(1)
        await eventually(retirement.due.is_set, "it asks")
        assert "300 MiB" in retirement.reason
        assert retirement.allows(10) == 10, "it goes on until its successor is there"


async def test_a_bound_below_what_it_starts_with_is_said_and_makes_no_loop_of_starts(
    caplog: pytest.LogCaptureFixture,
):
    looks: list[int] = []
    async with watched(10 * MIB, lambda: looks.append(1) or 50 * MIB) as retirement:
        await eventually(lambda: len(looks) > 3, "it has looked")
        assert not retirement.due.is_set()
        assert "from the start" in caplog.text
        retirement.took(1)
        await eventually(retirement.due.is_set, "it asks after a job")


async def test_where_nobody_can_tell_the_memory_it_says_so(caplog: pytest.LogCaptureFixture):
    async with watched(10 * MIB, lambda: None):
        await eventually(lambda: "has no effect" in caplog.text, "a warning")


def test_what_a_process_takes_and_gives_back_shows_in_its_resident_memory():
    before = resident_bytes()
    assert before is not None
    ballast = bytearray(b"x" * 64 * MIB)
    during = resident_bytes()
    assert during is not None
    assert during - before > 48 * MIB
    del ballast
    after = resident_bytes()
    assert after is not None
    assert after < during - 32 * MIB
