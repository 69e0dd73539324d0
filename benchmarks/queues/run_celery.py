"""Celery as it comes: as many processes as CPUs, and results in Redis."""

from __future__ import annotations

from _job import URL, main, mark
from celery import Celery

app = Celery("bench", broker=URL, backend=URL)


@app.task(name="noop")
def noop() -> None:
    mark()


def _enqueue(count: int) -> None:
    for _ in range(count):
        noop.delay()


if __name__ == "__main__":
    main(_enqueue, lambda: app.worker_main(["worker", "--loglevel=WARNING", "--without-gossip", "--without-mingle"]))
