"""How soon the next process is started, by how the last one ended."""

from __future__ import annotations

from typing import cast

from pipeserve_worker.process import WorkerProcess
from pipeserve_worker.restarts import Restarts


class Ended:
    """A process that has ended: whether it was ever ready, and for how long it had served."""

    def __init__(self, *, ready: bool, served_seconds: float = 0.0) -> None:
        self.ready = self
        self._ready = ready
        self.served_seconds = served_seconds

    def is_set(self) -> bool:
        return self._ready


def after(restarts: Restarts, *, ready: bool, served_seconds: float = 0.0) -> float:
    return restarts.after(cast(WorkerProcess, Ended(ready=ready, served_seconds=served_seconds)))


def test_a_process_that_served_for_a_while_is_replaced_at_once():
    assert after(Restarts(), ready=True, served_seconds=60) == 0


def test_processes_that_never_serve_are_tried_less_and_less_often_up_to_a_limit():
    restarts = Restarts()
    pauses = [after(restarts, ready=False) for _ in range(20)]
    assert 0.1 <= pauses[0] <= 0.2
    assert all(5 <= pause <= 10 for pause in pauses[8:])


def test_processes_that_die_of_their_jobs_are_replaced_within_a_second():
    restarts = Restarts()
    pauses = [after(restarts, ready=True, served_seconds=0.5) for _ in range(20)]
    assert 0.1 <= pauses[0] <= 0.2
    assert all(0.5 <= pause <= 1 for pause in pauses[5:])


def test_a_process_that_came_to_serve_ends_the_series_of_those_that_did_not():
    restarts = Restarts()
    for _ in range(10):
        after(restarts, ready=False)
    after(restarts, ready=True, served_seconds=0.5)
    assert after(restarts, ready=False) <= 0.2


def test_a_time_of_health_ends_the_series_of_crashes():
    restarts = Restarts()
    for _ in range(10):
        after(restarts, ready=True)
    after(restarts, ready=True, served_seconds=60)
    assert after(restarts, ready=True) <= 0.2
