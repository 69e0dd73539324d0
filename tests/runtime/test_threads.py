"""The threads of sync steps: as many as are needed, up to a bound that makes up for those left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeserve.runtime.threads import ThreadPool


@contextmanager
def pool_of(max_threads: int) -> Iterator[ThreadPool]:
    pool = ThreadPool(max_threads, "steps-test")
    try:
        yield pool
    finally:
        assert pool.close(5)


def test_a_call_finds_a_thread_beside_one_left_behind_though_calls_had_queued_before() -> None:
    gate, stuck, release, through = [threading.Event() for _ in range(4)]
    done = threading.Semaphore(0)

    def hold() -> None:
        gate.wait(5)

    def left_behind() -> None:
        stuck.set()
        release.wait(5)

    with pool_of(1) as pool:
        pool.submit(hold)
        for _ in range(3):
            pool.submit(done.release)
        gate.set()
        for _ in range(3):
            assert done.acquire(timeout=5)
        pool.submit(left_behind)
        assert stuck.wait(5)
        pool.lift(1)
        pool.submit(through.set)
        assert through.wait(5)
        release.set()
