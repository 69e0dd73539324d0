"""What is traced in the tests."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from opentelemetry import trace

from pipeserve import Batch, Cache, Retry, pipeline, step

SECRET = "hunter2-in-a-parameter"


def here() -> str:
    """The ids of the current span."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}-{context.span_id:016x}"


@step
def first(word: str) -> str:
    trace.get_current_span().set_attribute("author", word)
    return here()


@step
async def second(before: str) -> str:
    await asyncio.sleep(0)
    return f"{before} {here()}"


@step
def third(before: Any) -> str:
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.append(here()))
    thread.start()
    thread.join()
    with ThreadPoolExecutor(1) as pool:
        told.append(pool.submit(here).result())
    return f"{before} {here()} {' '.join(told)}"


@pipeline
def three(word: str) -> str:
    return third(second(first(word)))


@step
def breaks(word: str) -> str:
    raise ValueError(f"no good: {word}")


@pipeline
def breaking(word: str) -> str:
    return breaks(word)


calls: list[str] = []


@step(retry=Retry(attempts=3, backoff=0.0))
def unsteady(word: str) -> str:
    calls.append(word)
    if len(calls) < 3:
        raise ConnectionError(word)
    return word


@step(cache=Cache())
def kept(word: str) -> str:
    return word


@step(batch=Batch(max_size=4))
async def gathered(words: list[str]) -> list[str]:
    return words


@pipeline
def policies(word: str):
    return gathered(kept(unsteady(word)))


@step
async def slow(word: str) -> str:
    await asyncio.sleep(0.01)
    return here()


@step
def after(before: Any) -> str:
    return f"{before} {here()}"


@pipeline
def crowded(word: str) -> str:
    return after(slow(word))
