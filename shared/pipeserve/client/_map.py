"""The same call for each of many inputs, some of them at a time, results in the inputs' order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from typing import TypeVar

_InputT = TypeVar("_InputT")
_ResultT = TypeVar("_ResultT")
CONCURRENCY = 8
_AHEAD = 2
"""Inputs that are taken before their results are, in multiples of the concurrency: one slow call idles few others."""


def check(concurrency: int) -> int:
    """``concurrency`` as it is. Raises ValueError unless at least one call may be open."""
    if concurrency < 1:
        raise ValueError(f"concurrency: {concurrency} calls at a time are none")
    return concurrency


def in_threads(call: Callable[[_InputT], _ResultT], inputs: Iterable[_InputT], concurrency: int) -> Generator[_ResultT]:
    """Each input's result. A failed call is raised in its place. That, or closing, waits for calls that are open."""
    with ThreadPoolExecutor(concurrency, thread_name_prefix="pipeserve-map") as threads:
        ahead: deque[Future[_ResultT]] = deque()
        try:
            for each in inputs:
                ahead.append(threads.submit(call, each))
                while ahead and (len(ahead) >= _AHEAD * concurrency or ahead[0].done()):
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


async def in_tasks(
    call: Callable[[_InputT], Awaitable[_ResultT]],
    inputs: AsyncGenerator[_InputT],
    concurrency: int,
) -> AsyncGenerator[_ResultT]:
    """Each input's result. A failed call is raised in its place; that, or closing, cancels the calls that are open."""
    slots = asyncio.Semaphore(concurrency)

    async def one(each: _InputT) -> _ResultT:
        async with slots:
            return await call(each)

    ahead: deque[asyncio.Task[_ResultT]] = deque()
    try:
        async with aclosing(inputs) as source:
            async for each in source:
                ahead.append(asyncio.create_task(one(each)))
                while ahead and (len(ahead) >= _AHEAD * concurrency or ahead[0].done()):
                    yield await ahead.popleft()
        while ahead:
            yield await ahead.popleft()
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)
