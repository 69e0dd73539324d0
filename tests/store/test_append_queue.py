"""Appends of several running jobs at the same time go into one script; each is still judged for itself."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from redis.exceptions import ResponseError

from pipeserve.errors import StaleAttemptError
from pipeserve.events import Event, EventType, encode_body
from pipeserve.jobs import new_job_id
from pipeserve.runtime.ports import LogEntry, NewJob, RunView
from pipeserve.store import DeploymentStore


def body(job_id: str, value: int) -> bytes:
    return encode_body(Event(EventType.OUTPUT, job_id, 1, data={"value": value, "index": value}))


async def running(opened: DeploymentStore, count: int) -> list[str]:
    """The ids of as many jobs as are wanted, all claimed."""
    for _ in range(count):
        await opened.ledger.submit(NewJob(new_job_id(), "deployment", "run", "test", b"{}", total_steps=1))
    return [claim.job_id for claim in await opened.ledger.claim("owner", count)]


async def numbers(opened: DeploymentStore, job_id: str) -> list[int]:
    return [entry.seq for entry in await opened.log.read(job_id) if isinstance(entry, LogEntry)]


async def scripts_run(opened: DeploymentStore) -> int:
    info: Any = await opened.ledger._scope.connection.client.info("commandstats")
    return sum(info.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


async def test_what_comes_while_a_script_is_under_way_goes_into_the_next(deployment_store: DeploymentStore):
    jobs = await running(deployment_store, 30)
    before = await scripts_run(deployment_store)
    written = await asyncio.gather(
        *(deployment_store.ledger.append(job, 1, [body(job, 1), body(job, 2)], RunView()) for job in jobs)
    )
    assert written == [3] * 30
    assert await scripts_run(deployment_store) - before <= 3  # the first alone, perhaps twice, then all the others
    for job in jobs:
        assert await numbers(deployment_store, job) == [1, 2, 3]


async def test_a_large_write_does_not_take_others_with_it(deployment_store: DeploymentStore):
    jobs = await running(deployment_store, 5)
    bodies = {job: [body(job, at) for at in range(400)] for job in jobs}
    written = await asyncio.gather(*(deployment_store.ledger.append(job, 1, bodies[job], RunView()) for job in jobs))
    assert written == [401] * 5


async def test_a_stale_attempt_among_others_is_refused_alone(deployment_store: DeploymentStore):
    jobs = await running(deployment_store, 5)
    results = await asyncio.gather(
        *(deployment_store.ledger.append(job, 1 + at % 2, [body(job, 1)], RunView()) for at, job in enumerate(jobs)),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [int, StaleAttemptError, int, StaleAttemptError, int]
    assert [len(await numbers(deployment_store, job)) for job in jobs] == [2, 1, 2, 1, 2]


async def test_a_job_with_a_broken_key_fails_alone_and_nothing_is_written_twice(deployment_store: DeploymentStore):
    jobs = await running(deployment_store, 5)
    scope = deployment_store.ledger._scope
    broken = scope.keys.events(jobs[2])
    await scope.connection.call("DEL", broken)
    await scope.connection.call("SET", broken, "x", "PX", 60_000)
    results = await asyncio.gather(
        *(deployment_store.ledger.append(job, 1, [body(job, 1)], RunView()) for job in jobs), return_exceptions=True
    )
    assert isinstance(results[2], ResponseError)
    assert results[:2] + results[3:] == [2] * 4
    for job in jobs[:2] + jobs[3:]:
        assert await numbers(deployment_store, job) == [1, 2]


@pytest.mark.parametrize("cancelled", [[0], [1], [0, 1, 2]])
async def test_a_cancelled_append_holds_up_no_other_and_leaves_nothing_behind(
    deployment_store: DeploymentStore, cancelled: list[int]
):
    jobs = await running(deployment_store, 3)
    bodies = {job: [body(job, 1)] for job in jobs}
    tasks = [asyncio.create_task(deployment_store.ledger.append(job, 1, bodies[job], RunView())) for job in jobs]
    for _ in range(3):  # under way by then
        await asyncio.sleep(0)
    for at in cancelled:
        tasks[at].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for at, result in enumerate(results):
        assert isinstance(result, asyncio.CancelledError) if at in cancelled else result == 2
    # It may have been written or not; repeated, it is there once.
    for job in jobs:
        if jobs.index(job) in cancelled:
            assert await deployment_store.ledger.append(job, 1, bodies[job], RunView()) == 2
        assert await numbers(deployment_store, job) == [1, 2]


async def test_an_append_that_comes_while_another_is_being_given_up_is_written(deployment_store: DeploymentStore):
    first, second = await running(deployment_store, 2)
    given_up = asyncio.create_task(deployment_store.ledger.append(first, 1, [body(first, 1)], RunView()))
    for _ in range(3):
        await asyncio.sleep(0)
    given_up.cancel()
    async with asyncio.timeout(5):
        assert await deployment_store.ledger.append(second, 1, [body(second, 1)], RunView()) == 2
    await asyncio.wait([given_up])


async def test_giving_up_one_append_cancels_no_other_even_where_the_store_does_not_hear_of_it(
    deployment_store: DeploymentStore, monkeypatch: pytest.MonkeyPatch
):
    first, second = await running(deployment_store, 2)
    connection = deployment_store.ledger._scope.connection
    run, waiting = connection.run, asyncio.Event()

    async def deaf(*arguments: Any, **options: Any) -> Any:
        """Takes its first cancellation for its own, as redis-py may, and is slow then."""
        if not waiting.is_set():
            waiting.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        else:
            await asyncio.sleep(0.3)
        return await run(*arguments, **options)

    monkeypatch.setattr(connection, "run", deaf)
    given_up = asyncio.create_task(deployment_store.ledger.append(first, 1, [body(first, 1)], RunView()))
    await waiting.wait()
    given_up.cancel()
    await asyncio.sleep(0)  # it gives up, and ends what writes for nobody
    async with asyncio.timeout(5):
        assert await deployment_store.ledger.append(second, 1, [body(second, 1)], RunView()) == 2
    await asyncio.wait([given_up])
