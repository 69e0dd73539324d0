"""What all tests share: the fixtures of the store, a served pipeline in real processes, and a look for leftovers."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.service import ServeFixture, serve_target

pytest_plugins = ["tests.store_fixtures", "tests.docker_engine"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Some tests print what UTF-8 can't carry, and a report has to reach the process that gathers them."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "replace").decode()) for name, text in report.sections]
    return report


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> ServeFixture:
    """``with serve("examples/quickstart.py:quickstart", workers=1) as service:`` runs ``pipeserve serve`` for real."""

    def start(target: str, *, workers: int = 1, **environment: str) -> Any:
        return serve_target(target, Path(tmp_path_factory.mktemp("serve")), workers=workers, environment=environment)

    return start


@pytest.fixture(autouse=True)
def no_leftovers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a task on its loop or one of our threads behind."""
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("no_leftover_tasks")
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while left := [thread.name for thread in set(threading.enumerate()) - before if _is_ours(thread)]:
        if time.monotonic() > deadline:
            pytest.fail(f"threads left over: {', '.join(sorted(left))}")
        time.sleep(0.01)


@pytest.fixture
async def no_leftover_tasks() -> AsyncIterator[None]:
    """Set up first, so torn down last: by then every other fixture has closed what it opened."""
    before = asyncio.all_tasks()
    yield
    for _ in range(3):  # what was cancelled in the last tick may end now
        await asyncio.sleep(0)
    # Generators of libraries that nobody closes are closed by the loop, whenever the garbage collector finds them.
    async with asyncio.timeout(5):
        while closing := [task for task in _tasks_since(before) if not inspect.iscoroutine(task.get_coro())]:
            await asyncio.wait(closing)
    left = _tasks_since(before)
    if left:
        pytest.fail(f"tasks left over: {', '.join(sorted(map(repr, left)))}")


def _tasks_since(before: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - before - {asyncio.current_task()}


def _is_ours(thread: threading.Thread) -> bool:
    return thread.is_alive() and (thread.name.startswith("steps-") or thread.name == "lease-keeper")
