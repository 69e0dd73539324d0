"""Keeps this process's leases and its line in ``/status`` alive, from a thread.

A task on the loop would not do: a step that blocks the loop for longer than the lease would run twice. What the thread
learns (a lost lease, an accepted cancel) is passed to the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager

from pipeserve.sdk.deployment import Deployment
from pipeserve.settings import StoreSettings
from pipeserve.store import Keys, LeaseKeeper
from pipeserve_worker.identity import Identity


class Heartbeat:
    """The leases of one worker process: which are kept, and who hears of the lost ones."""

    def __init__(
        self, redis_url: str, keys: Keys, identity: Identity, settings: StoreSettings, deployment: Deployment
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._held: set[str] = set()
        self._identity = identity
        self._on_lost: Callable[[str], None] | None = None
        self._on_cancel: Callable[[str], None] | None = None
        self._keeper = LeaseKeeper(
            redis_url,
            keys,
            identity.owner,
            settings.lease_seconds,
            lambda: identity.info(busy=len(self._held)),
            on_lost=lambda job_id: self._pass_on(self._on_lost, job_id),
            on_cancel=lambda job_id: self._pass_on(self._on_cancel, job_id),
            deployment=deployment,
            event_log_max=settings.event_log_max,
            result_ttl=settings.result_ttl,
        )

    def add(self, job_id: str) -> None:
        """Keep this job's lease from now on."""
        self._held.add(job_id)
        self._keeper.add(job_id)

    def discard(self, job_id: str) -> None:
        """Keep it no more."""
        self._held.discard(job_id)
        self._keeper.discard(job_id)

    @contextmanager
    def beating(self, *, on_lost: Callable[[str], None], on_cancel: Callable[[str], None]) -> Generator[None]:
        """Beats meanwhile. Both callbacks take a job's id, on the loop; ``on_cancel`` may repeat one."""
        self._on_lost, self._on_cancel = on_lost, on_cancel
        with self._keeper:
            yield

    def _pass_on(self, callback: Callable[[str], None] | None, job_id: str) -> None:
        if callback is not None:
            self._loop.call_soon_threadsafe(callback, job_id)
