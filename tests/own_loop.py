"""What lives on an event loop of its own, for tests that run on other loops or on none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def on_own_loop(open_it: Callable[[], AbstractAsyncContextManager[T]], *, name: str) -> Iterator[T]:
    """What the context manager gives, entered and left on a thread called ``name`` with a loop of its own."""
    opened: Future[T] = Future()
    stop = threading.Event()

    async def run() -> None:
        async with open_it() as given:
            opened.set_result(given)
            await asyncio.to_thread(stop.wait)

    def main() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    thread = threading.Thread(target=main, name=name)
    thread.start()
    try:
        yield opened.result(timeout=30)
    finally:
        stop.set()
        thread.join(timeout=30)
        assert not thread.is_alive(), f"{name} did not stop"
