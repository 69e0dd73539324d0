"""How soon a worker process that died is replaced, and how much is said of one that can't start."""

from __future__ import annotations

from pipeserve.process_log import Log
from pipeserve.runtime.backoff import Backoff
from pipeserve_worker.process import WorkerProcess
from pipeserve_worker.report import Word

_FIRST = 0.2
#: Seconds at most between two processes that ran jobs: the jobs were at fault, and others wait.
_CRASH_LIMIT = 1.0
#: Seconds at most between two processes that never came to run any.
_START_LIMIT = 10.0
#: Seconds of service after which a death is an accident and not one of a series.
HEALTHY_SECONDS = 1.0
#: Of so many failures to start one is told in full.
_IN_FULL = 20


class Restarts:
    """The pauses of one slot."""

    def __init__(self, *, healthy_seconds: float = HEALTHY_SECONDS) -> None:
        self._healthy_seconds = healthy_seconds
        self._starts = Backoff(_FIRST, _START_LIMIT)
        self._crashes = Backoff(_FIRST, _CRASH_LIMIT)

    def after_no_start(self) -> float:
        """Seconds to wait after a process that could not start."""
        return self._starts.next()

    def after(self, ended: WorkerProcess) -> float:
        """Seconds to wait after a process that has ended by itself: none, if it had served for a while."""
        if not ended.ready.is_set():
            return self.after_no_start()
        self._starts.reset()
        if ended.served_seconds >= self._healthy_seconds:
            self._crashes.reset()
            return 0.0
        return self._crashes.next()


class StartFailures:
    """Says why processes can't start: the same reason in full only now and then, however many try."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._kind = ""
        self._count = 0

    def note(self, ended: WorkerProcess) -> None:
        """A process has ended."""
        if ended.ready.is_set():
            self._kind, self._count = "", 0
        elif (traceback := ended.told.get(Word.BROKEN)) is not None:
            self._say(ended, traceback)

    def _say(self, ended: WorkerProcess, traceback: str) -> None:
        reason = traceback.strip().rpartition("\n")[2]
        kind = reason.partition(":")[0]  # the rest may differ from time to time
        self._count = self._count + 1 if kind == self._kind else 1
        self._kind = kind
        in_full = {"exception": traceback} if self._count % _IN_FULL == 1 else {}
        self._log.error(
            "a worker process could not start", child=ended.owner, reason=reason, failures=self._count, **in_full
        )
