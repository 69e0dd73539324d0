"""Adaptive batching: when a batch starts, whose result is whose, and what a bad item or a lost caller does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar

import pytest

from pipeserve import Batch
from pipeserve.errors import DrainingError
from pipeserve.runtime.batcher import Batcher

MINUTE = 60_000.0


class Doubler:
    """A batched function that notes its batches, and waits with each until it is let go."""

    def __init__(self, *, held: bool = False, bad: Sequence[int] = ()) -> None:
        self.batches: list[list[int]] = []
        self.cancelled: list[list[int]] = []
        self.bad = bad
        self.gate = asyncio.Event()
        self.changed = asyncio.Condition()
        if not held:
            self.gate.set()

    async def __call__(self, items: list[int]) -> list[int | BaseException]:
        await self._note(self.batches, items)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            await self._note(self.cancelled, items)
            raise
        for item in items:
            if item in self.bad:
                raise ValueError(f"{item} is bad")
        return [item * 2 for item in items]

    async def _note(self, batches: list[list[int]], items: list[int]) -> None:
        async with self.changed:
            batches.append(items)
            self.changed.notify_all()

    async def started(self, count: int) -> None:
        """Wait until so many batches have started."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.batches) >= count)


@asynccontextmanager
async def batcher_of(
    run: Doubler, *, others: int = 1_000, max_size: int = 8, max_wait_ms: float = MINUTE
) -> AsyncIterator[Batcher[int, int]]:
    batcher = Batcher(Batch(max_size=max_size, max_wait_ms=max_wait_ms), run, others=lambda: others)
    try:
        yield batcher
    finally:
        await batcher.aclose()


async def waiting(batcher: Batcher[int, int], count: int) -> None:
    while batcher.figures().waiting != count:  # noqa: ASYNC110 - a figure tells nobody
        await asyncio.sleep(0)


async def ended(task: asyncio.Task[int]) -> BaseException | int | None:
    """How the task ended: its result or what it raised."""
    await asyncio.wait([task])
    return asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()


async def test_concurrent_calls_become_one_batch_and_each_gets_its_own_result() -> None:
    run = Doubler()
    async with batcher_of(run, others=5) as batcher:
        assert await asyncio.gather(*map(batcher.call, range(5))) == [0, 2, 4, 6, 8]
    assert run.batches == [[0, 1, 2, 3, 4]]


async def test_a_lone_caller_does_not_wait() -> None:
    run = Doubler()
    async with batcher_of(run, others=1) as batcher:
        for item in range(3):
            assert await batcher.call(item) == item * 2
    assert run.batches == [[0], [1], [2]]


async def test_a_full_batch_starts_at_once_and_leaves_the_rest_to_the_next() -> None:
    run = Doubler(held=True)
    async with batcher_of(run, max_size=2) as batcher:
        calls = [asyncio.create_task(batcher.call(item)) for item in range(5)]
        await run.started(2)
        assert run.batches == [[0, 1], [2, 3]]  # side by side
        await waiting(batcher, 1)
        calls.append(asyncio.create_task(batcher.call(5)))
        await run.started(3)
        run.gate.set()
        assert await asyncio.gather(*calls) == [0, 2, 4, 6, 8, 10]
    assert run.batches[2:] == [[4, 5]]


async def test_an_item_waits_for_max_wait_only() -> None:
    run = Doubler()
    async with batcher_of(run, max_wait_ms=1) as batcher:
        assert await asyncio.gather(batcher.call(1), batcher.call(2)) == [2, 4]
        assert await batcher.call(3) == 6
    assert run.batches == [[1, 2], [3]]


async def test_while_a_batch_runs_the_next_gathers_and_starts_when_that_has_ended() -> None:
    run = Doubler(held=True)
    async with batcher_of(run, max_wait_ms=0) as batcher:
        first = asyncio.create_task(batcher.call(1))
        await run.started(1)
        later = [asyncio.create_task(batcher.call(item)) for item in (2, 3, 4)]
        await waiting(batcher, 3)
        assert run.batches == [[1]]
        run.gate.set()
        assert await asyncio.gather(first, *later) == [2, 4, 6, 8]
    assert run.batches == [[1], [2, 3, 4]]


async def test_when_fewer_requests_are_left_than_items_wait_a_review_starts_them() -> None:
    run = Doubler()
    requests = 3
    batcher: Batcher[int, int] = Batcher(Batch(max_wait_ms=MINUTE), run, others=lambda: requests)
    calls = [asyncio.create_task(batcher.call(item)) for item in (1, 2)]
    await waiting(batcher, 2)
    requests = 2  # the third ended without a call
    batcher.review()
    assert await asyncio.gather(*calls) == [2, 4]
    await batcher.aclose()
    assert run.batches == [[1, 2]]


@pytest.mark.parametrize("bad", range(5))
async def test_one_bad_item_fails_its_own_call_only(bad: int) -> None:
    run = Doubler(bad=[bad])
    async with batcher_of(run, others=5) as batcher:
        results = await asyncio.gather(*map(batcher.call, range(5)), return_exceptions=True)
    assert repr(results.pop(bad)) == repr(ValueError(f"{bad} is bad"))
    assert results == [item * 2 for item in range(5) if item != bad]


async def test_when_all_items_are_bad_each_call_gets_its_own_error() -> None:
    run = Doubler(bad=range(4))
    async with batcher_of(run, others=4) as batcher:
        results = await asyncio.gather(*map(batcher.call, range(4)), return_exceptions=True)
    assert [str(result) for result in results] == ["0 is bad", "1 is bad", "2 is bad", "3 is bad"]
    assert run.batches == [[0, 1, 2, 3], [0, 1], [0], [1], [2, 3], [2], [3]]


async def test_a_result_that_is_an_exception_is_raised_for_its_item_only() -> None:
    async def odd_ones_fail(items: list[int]) -> list[int | BaseException]:
        return [KeyError(item) if item % 2 else item for item in items]

    batcher: Batcher[int, int] = Batcher(Batch(), odd_ones_fail, others=lambda: 3)
    results = await asyncio.gather(*map(batcher.call, (2, 3, 4)), return_exceptions=True)
    await batcher.aclose()
    assert [repr(result) for result in results] == ["2", "KeyError(3)", "4"]


@pytest.mark.parametrize("given", [[], [1], [1, 2, 3]])
async def test_a_wrong_number_of_results_is_an_error_for_all_and_is_not_tried_again(given: list[int]) -> None:
    batches: list[list[int]] = []

    async def miscounts(items: list[int]) -> list[int]:
        batches.append(items)
        return given

    batcher: Batcher[int, int] = Batcher(Batch(), miscounts, others=lambda: 2)
    results = await asyncio.gather(*map(batcher.call, (7, 8)), return_exceptions=True)
    await batcher.aclose()
    words = f"{len(given)} results for a batch of 2: each item needs one, in the order of the items"
    assert [(type(result), str(result)) for result in results] == [(ValueError, words)] * 2
    assert batches == [[7, 8]]


async def test_a_caller_that_leaves_before_the_start_takes_its_item_along() -> None:
    run = Doubler()
    requests = 4
    batcher: Batcher[int, int] = Batcher(Batch(max_wait_ms=MINUTE), run, others=lambda: requests)
    calls = [asyncio.create_task(batcher.call(item)) for item in (1, 2, 3)]
    await waiting(batcher, 3)
    requests = 2
    calls[1].cancel()
    assert [await ended(call) for call in (calls[0], calls[2])] == [2, 6]  # nobody else could come: leaving starts them
    assert isinstance(await ended(calls[1]), asyncio.CancelledError)
    await batcher.aclose()
    assert run.batches == [[1, 3]]


async def test_a_caller_that_leaves_after_the_start_loses_its_result_only() -> None:
    run = Doubler(held=True)
    async with batcher_of(run, others=3) as batcher:
        calls = [asyncio.create_task(batcher.call(item)) for item in (1, 2, 3)]
        await run.started(1)
        calls[0].cancel()
        assert isinstance(await ended(calls[0]), asyncio.CancelledError)
        run.gate.set()
        assert [await ended(call) for call in calls[1:]] == [4, 6]
    assert run.cancelled == []


async def test_when_all_callers_have_left_the_run_is_cancelled() -> None:
    run = Doubler(held=True)
    async with batcher_of(run, others=2) as batcher:
        calls = [asyncio.create_task(batcher.call(item)) for item in (1, 2)]
        await run.started(1)
        for call in calls:
            call.cancel()
            await ended(call)
        async with run.changed:
            await run.changed.wait_for(lambda: run.cancelled)
        run.gate.set()
        alone = asyncio.create_task(batcher.call(3))
        second = asyncio.create_task(batcher.call(4))
        assert [await ended(alone), await ended(second)] == [6, 8]  # the next batch is not held up
    assert run.cancelled == [[1, 2]]


async def test_callers_that_left_are_not_tried_again_when_a_batch_is_halved() -> None:
    run = Doubler(held=True, bad=[3])
    async with batcher_of(run, others=4) as batcher:
        calls = [asyncio.create_task(batcher.call(item)) for item in range(4)]
        await run.started(1)
        for call in calls[:2]:
            call.cancel()
            await ended(call)
        run.gate.set()
        assert repr(await ended(calls[3])) == repr(ValueError("3 is bad"))
        assert await ended(calls[2]) == 4
    assert run.batches == [[0, 1, 2, 3], [2, 3], [2], [3]]


async def test_a_function_that_cancels_itself_cancels_its_callers_and_is_not_tried_again() -> None:
    batches: list[list[int]] = []

    async def gives_up(items: list[int]) -> list[int]:
        batches.append(items)
        raise asyncio.CancelledError

    batcher: Batcher[int, int] = Batcher(Batch(), gives_up, others=lambda: 2)
    calls = [asyncio.create_task(batcher.call(item)) for item in (1, 2)]
    assert [type(await ended(call)) for call in calls] == [asyncio.CancelledError] * 2
    await batcher.aclose()
    assert batches == [[1, 2]]


async def test_a_function_that_exits_fails_its_callers_and_not_the_process() -> None:
    batches: list[list[int]] = []

    async def exits(items: list[int]) -> list[int]:
        batches.append(items)
        raise SystemExit(3)

    async def call(item: int) -> str:
        try:
            return str(await batcher.call(item))
        except SystemExit as error:  # out of a task it would end the test run
            return repr(error)

    batcher: Batcher[int, int] = Batcher(Batch(), exits, others=lambda: 2)
    assert await asyncio.gather(call(1), call(2)) == ["SystemExit(3)", "SystemExit(3)"]
    await batcher.aclose()
    assert batches == [[1, 2]]


async def test_a_batch_runs_in_the_context_of_none_of_its_callers() -> None:
    caller: ContextVar[str] = ContextVar("caller", default="nobody")

    async def whose(items: list[int]) -> list[str]:
        return [caller.get() for _ in items]

    async def call(item: int) -> str:
        caller.set(f"caller {item}")
        return await batcher.call(item)

    batcher: Batcher[int, str] = Batcher(Batch(), whose, others=lambda: 2)
    assert await asyncio.gather(call(1), call(2)) == ["nobody", "nobody"]
    await batcher.aclose()


async def test_figures_count_batches_and_items() -> None:
    run = Doubler(held=True)
    async with batcher_of(run, max_size=3) as batcher:
        calls = [asyncio.create_task(batcher.call(item)) for item in range(7)]
        await run.started(2)
        figures = batcher.figures()
        assert (figures.batches, figures.items, figures.largest, figures.waiting) == (2, 6, 3, 1)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


async def test_closing_ends_those_that_wait_and_those_that_run() -> None:
    run = Doubler(held=True)
    async with batcher_of(run, max_size=2) as batcher:
        calls = [asyncio.create_task(batcher.call(item)) for item in range(3)]
        await run.started(1)
        await waiting(batcher, 1)
        await batcher.aclose()
        assert [type(await ended(call)) for call in calls] == [DrainingError] * 3
        with pytest.raises(DrainingError):
            await batcher.call(9)
    assert run.cancelled == [[0, 1]]


async def test_many_callers_that_come_and_go_each_get_their_own_result() -> None:
    run = Doubler(bad=[13, 77])
    under_way = 0

    async def request(first: int) -> list[object]:
        nonlocal under_way
        under_way += 1
        try:
            results: list[object] = []
            for item in range(first, first + 5):
                call = asyncio.create_task(batcher.call(item))
                if item % 11 == 0:
                    await asyncio.sleep(0)
                    call.cancel()
                results.append(await ended(call))
            return results
        finally:
            under_way -= 1
            batcher.review()

    batcher: Batcher[int, int] = Batcher(Batch(max_size=4, max_wait_ms=0), run, others=lambda: under_way)
    answers = await asyncio.gather(*[request(first) for first in range(0, 100, 5)])
    await batcher.aclose()
    for item, answer in enumerate(answer for answers_of in answers for answer in answers_of):
        if item % 11 == 0:
            assert isinstance(answer, asyncio.CancelledError | ValueError)
        else:
            assert repr(answer) == (repr(ValueError(f"{item} is bad")) if item in run.bad else str(item * 2))
    assert max(map(len, run.batches)) <= 4
