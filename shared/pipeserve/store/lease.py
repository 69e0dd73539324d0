"""Keeping the leases of a process alive, from a thread.

A thread, because a job that blocks the event loop must not lose its lease: with a heartbeat on the loop such a job
ran twice. The thread has a synchronous connection of its own.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Self

import orjson
import redis
from redis.exceptions import NoScriptError, RedisError

from pipeserve.runtime.ports import Renewal, WorkerInfo
from pipeserve.sdk.deployment import Deployment
from pipeserve.store.address import masked
from pipeserve.store.connection import Script, connect_blocking, is_outage
from pipeserve.store.deployments import RESTORE, arguments_of
from pipeserve.store.keys import Keys
from pipeserve.store.scripts.epoch import read_epoch
from pipeserve.store.scripts.lease import RENEW, read_renewal, renew_arguments

logger = logging.getLogger(__name__)

BEATS_PER_LEASE = 3
RETRY_PAUSE = 0.5
"""Seconds between tries while the store is away: leases must be renewed soon after it is back."""
MISSED_BEATS = 3
"""Beats that a worker's record outlives the last one."""


class LeaseKeeper:
    """Renews every job that ``owner`` holds, three times per lease. A context manager: the thread lives inside it.

    Each beat, also one that renews nothing, takes back jobs whose owner fell silent: an API process without any worker
    so ends the synchronous runs of one that died. ``event_log_max`` and ``result_ttl`` (seconds) mean what the settings
    so named mean; such a job's end is written with them.

    ``info`` is asked at each beat for the worker's record, which ``/status`` lists. ``on_lost`` is told the ids of jobs
    that another owner may take by now, and ``on_cancel`` those that are being canceled, again at each beat: the durable
    flag behind the lossy signal.

    Each beat also looks whether the store was emptied since the one before (``FLUSHALL``, lost files). Then it says so
    in the log, puts ``deployment`` back into the registry, so that new workers find it, and tells ``on_emptied``. All
    four functions are called on the keeper's thread and must not block.
    """

    def __init__(
        self,
        url: str,
        keys: Keys,
        owner: str,
        lease_seconds: float,
        info: Callable[[], WorkerInfo] | None = None,
        *,
        on_lost: Callable[[str], None] | None = None,
        on_cancel: Callable[[str], None] | None = None,
        on_emptied: Callable[[], None] | None = None,
        deployment: Deployment | None = None,
        event_log_max: int = 10_000,
        result_ttl: float = 86_400,
    ) -> None:
        self._url = url
        self._keys = keys
        self._owner = owner
        self._lease = lease_seconds
        self._header = (event_log_max, round(result_ttl * 1000), round(lease_seconds * 1000))
        self._info = info
        self._on_lost = on_lost
        self._on_cancel = on_cancel
        self._on_emptied = on_emptied
        self._deployment = deployment
        self._epoch = ""
        """The store's marker at the last beat."""
        self._restores = True
        """The deployment is to be put back. At first, too: the store may have been emptied since it was found there."""
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def add(self, job_id: str) -> None:
        """Renew this job from now on. Any thread."""
        with self._lock:
            self._held.add(job_id)

    def discard(self, job_id: str) -> None:
        """Renew it no more: it has ended or was given back. Any thread."""
        with self._lock:
            self._held.discard(job_id)

    def _run(self) -> None:
        beat = self._lease / BEATS_PER_LEASE
        client = connect_blocking(self._url, read_timeout=max(1.0, min(beat, 5.0)))
        try:
            away = False
            while True:
                try:
                    self._act(self._renew(client, beat))
                    away = False
                except (RedisError, OSError) as error:
                    if not is_outage(error):
                        logger.exception("leases could not be renewed")
                    elif not away:
                        logger.warning("leases can't be renewed: %s is away: %s", masked(self._url), error)
                    away = True
                if self._stop.wait(min(beat, RETRY_PAUSE) if away else beat):
                    return
        finally:
            client.close()

    def _renew(self, client: redis.Redis, beat: float) -> Renewal:
        with self._lock:
            held = tuple(self._held)
        info = b"" if self._info is None else orjson.dumps(asdict(self._info()))
        ttl = MISSED_BEATS * max(beat, 1.0)
        marks = {"epoch": self._epoch, "new_epoch": secrets.token_hex(8)}
        arguments = renew_arguments(self._owner, info, ttl, held, **marks)
        reply = _run(client, RENEW, self._keys.prefix, *self._header, *arguments)
        self._compare(read_epoch(reply))
        if self._restores and self._deployment is not None:
            _run(client, RESTORE, *arguments_of(self._deployment))
        self._restores = False
        return read_renewal(reply)

    def _compare(self, epoch: str) -> None:
        emptied = self._epoch not in ("", epoch)
        self._epoch = epoch
        if emptied:
            logger.error(
                "the job store at %s was emptied (FLUSHALL, lost files, or a restart without persistence): "
                "jobs accepted before are lost",
                masked(self._url),
            )
            self._restores = True
            if self._on_emptied is not None:
                self._on_emptied()

    def _act(self, renewal: Renewal) -> None:
        for job_id in renewal.lost:
            with self._lock:
                held = job_id in self._held
                self._held.discard(job_id)
            # A job that was discarded while the beat was on its way has ended; it is not lost.
            if held and self._on_lost is not None:
                self._on_lost(job_id)
        if self._on_cancel is not None:
            for job_id in renewal.canceling:
                self._on_cancel(job_id)


def _run(client: redis.Redis, script: Script, key: str, *arguments: Any) -> Any:
    send: Any = client.execute_command  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    try:
        return send("EVALSHA", script.sha, 1, key, *arguments)
    except NoScriptError:
        return send("EVAL", script.source, 1, key, *arguments)
