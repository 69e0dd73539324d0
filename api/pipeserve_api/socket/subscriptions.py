"""The jobs that one socket follows, by id."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial

from pipeserve.errors import BadRequestError, NotFoundError, RateLimitedError
from pipeserve.events import EventType
from pipeserve.runtime.tasks import end_tasks
from pipeserve_api.drain import Drain
from pipeserve_api.lookup import JobLog
from pipeserve_api.socket.credit import Credit
from pipeserve_api.socket.sender import Sender
from pipeserve_api.socket.subscription import Subscription

MAX_SUBSCRIPTIONS = 1000
_REMEMBERED = 1000  # jobs whose end crosses an unsubscribe on its way here


class Subscriptions:
    """At most :data:`MAX_SUBSCRIPTIONS` at a time, one for each job."""

    def __init__(
        self, sender: Sender, credit: Credit, drain: Drain, instance: str, *, on_end: Callable[[str], object]
    ) -> None:
        """``on_end`` is called with the id of a job whose log has ended."""
        self._sender = sender
        self._credit = credit
        self._drain = drain
        self._instance = instance
        self._on_end = on_end
        self._active: dict[str, Subscription] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._active

    def check_room(self, *, others: int = 0) -> None:
        """Raise RateLimitedError where one more is too many. ``others``: what counts besides."""
        if len(self._active) + others >= MAX_SUBSCRIPTIONS:
            raise RateLimitedError(
                f"A socket follows {MAX_SUBSCRIPTIONS} jobs at a time: unsubscribe from one, or open another socket."
            )

    def check_new(self, job_id: str) -> None:
        """Raise BadRequestError for a job that is followed."""
        if job_id in self._active:
            raise BadRequestError("This socket follows the job already; unsubscribe first.", job_id=job_id)

    def start(self, job_id: str, log: JobLog, *, after: int, types: Iterable[EventType] | None) -> None:
        """Follow a job that is not followed yet, from the event after number ``after``."""
        subscription = Subscription(
            job_id,
            log,
            after=after,
            types=None if types is None else frozenset(event_type.value for event_type in types),
            sender=self._sender,
            credit=self._credit,
            drain=self._drain,
            instance=self._instance,
            on_end=partial(self._over, job_id),
            of=len(self._active) + 1,
        )
        self._active[job_id] = subscription
        task = subscription.start()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self, job_id: str) -> Subscription | None:
        """Send nothing more of a job. None: it has just ended. Raises NotFoundError for one that was not followed."""
        subscription = self._active.get(job_id)
        if subscription is not None:
            await subscription.stop()
            self._forget(job_id)
        elif job_id not in self._ended:
            raise NotFoundError("This socket does not follow that job.", job_id=job_id)
        return subscription

    async def close(self) -> None:
        """Follow nothing any more."""
        await end_tasks(self._tasks)
        self._active.clear()

    def _over(self, job_id: str, ended: bool) -> None:
        self._forget(job_id)
        if ended:
            self._on_end(job_id)

    def _forget(self, job_id: str) -> None:
        self._active.pop(job_id, None)
        self._ended[job_id] = None
        self._ended.move_to_end(job_id)
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)
