"""Ending tasks, whatever they and others do meanwhile."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from pipeserve.runtime.tasks import end_tasks


async def deaf(times: int) -> None:
    """Takes as many cancellations for its own, as redis-py may."""
    for _ in range(times):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
    await asyncio.Event().wait()


async def test_whoever_ends_tasks_while_it_is_ended_itself_leaves_none_behind() -> None:
    inner = asyncio.create_task(deaf(3))

    async def owner() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await end_tasks([inner])

    outer = asyncio.create_task(owner())
    await asyncio.sleep(0)
    await end_tasks([outer])
    assert inner.cancelled()
    assert outer.cancelled()


async def test_whoever_is_cancelled_while_it_ends_tasks_is_cancelled_once_they_have_ended() -> None:
    inner = asyncio.create_task(deaf(2))
    ending = asyncio.create_task(end_tasks([inner]))
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert inner.cancelled()


async def test_a_task_that_fails_at_its_end_is_nobodys_trouble() -> None:
    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("at the end")

    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    await end_tasks([task])
    assert isinstance(task.exception(), ValueError)
